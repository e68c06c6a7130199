import pytest

from bert_fast.cost import accelerators
from bert_fast.cost.utilisation import utilisation

COUNTS = {"flops": 6e12, "flops_dense": 8e12, "tokens_real": 900, "tokens_padded": 1000}


def test_utilisation_excludes_padding_and_dense_utilisation_includes_saved_flops():
    used = utilisation(COUNTS, 3.0, 4e12)
    assert used == pytest.approx({"utilisation": 0.45, "utilisation_padded": 0.5, "utilisation_dense": 2 / 3})


def test_utilisation_is_absent_without_a_peak_or_elapsed_time():
    assert utilisation(COUNTS, 3.0, None) == {}
    assert utilisation(COUNTS, 0.0, 4e12) == {}


@pytest.mark.parametrize(
    ("kind", "name", "peak"),
    [
        ("TPU v5 lite", "v5e", 197e12),
        ("TPU v5", "v5p", 459e12),
        ("TPU v4", "v4", 275e12),
        ("TPU v6 lite", "v6e", 918e12),
        ("NVIDIA H200", "H200", 989e12),
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", "H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("Tesla T4", "T4 (fp16)", 65e12),
    ],
)
def test_accelerators_are_found_by_the_name_that_jax_gives_them(kind, name, peak):
    found = accelerators.find(kind)
    assert found is not None
    assert (found.name, found.peak) == (name, peak)
    assert found.sources[0]


def test_unknown_devices_have_no_peak():
    assert accelerators.find("cpu") is None
    assert accelerators.find("TPU v5 litest") is None


def test_clock_is_peak_over_flops_per_cycle():
    clocks = {name: round(tpu.clock / 1e9, 2) for name, tpu in accelerators.TPUS.items() if tpu.clock}
    # Four matrix units of 128 x 128 do 131,072 FLOPs a cycle.
    assert clocks["v5e"] == pytest.approx(197e3 / 131_072, abs=0.01)
    assert clocks["v4"] == pytest.approx(1.05)
    assert clocks["v5p"] == pytest.approx(1.75)
    assert clocks["v6e"] == pytest.approx(1.75)


def test_every_price_has_a_date_and_every_figure_a_source():
    for tpu in accelerators.TPUS.values():
        assert tpu.sources[0]
        assert (tpu.dollars is None) == (tpu.sources[1] == "")
