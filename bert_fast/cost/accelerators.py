"""Speed, memory and price of accelerators: the one table behind utilisation, plans and prices.

Prices are on-demand list prices in the United States on the date given. Look up your own before you rely on them.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bert_fast import BadInput

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One chip.

    kinds: JAX's names for it (`device_kind`), in lower case; "*" at the end matches any ending.
    peak: bf16 FLOP/s. clock: cycles/s of its matrix units; 0 if unknown or not needed. memory: bytes.
    bandwidth: bytes/s of the memory. devices: JAX devices per chip. dollars: price per hour; None if there is none.
    link: bytes/s that a chip sends over one of its links to other chips. ring: a dimension of a slice is a ring if its
    size is a multiple of this number, else a line. sources: the source of the figures, and the source of the price with
    its date.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    memory: int
    bandwidth: float
    clock: float = 0.0
    devices: int = 1
    dollars: float | None = None
    link: float = 0.0
    ring: int = 1
    sources: tuple[str, str] = ("", "")

    @property
    def smallest_slice(self) -> str:
        """The smallest slice of a TPU, as a topology."""
        return f"{self.name}:{'2x2x1' if self.ring == 4 else '1x1'}"  # cubes of 4 x 4 x 4: three dimensions


def tpu(name, kind, tflops, memory, bandwidth, flop_a_cycle, devices, dollars, priced) -> Accelerator:
    """A TPU. flop_a_cycle: FLOPs of its matrix units per cycle, units x rows x columns x 2 (0: unknown). The clock is
    the peak divided by flop_a_cycle.
    """
    source, peak = f"docs.cloud.google.com/tpu/docs/{name}", tflops * 1e12
    clock = peak / flop_a_cycle if flop_a_cycle else 0.0
    link, ring = NETWORK[name]
    return Accelerator(name, (kind,), peak, memory, bandwidth, clock, devices, dollars, link, ring, (source, priced))


# link: bytes/s of one link in one direction. The documentation gives a chip's bidirectional bandwidth over all links;
# here, this is divided by twice the number of links. v4's figure is from Jouppi et al. 2023, arXiv:2304.01433, 2.1.
# ring: on v5e and v6e, only a whole pod has rings (jax-ml.github.io/scaling-book/tpus). On the others, a slice with
# rings consists of cubes of 4 x 4 x 4 chips.
NETWORK = {
    "v4": (50 * GB, 4),
    "v5e": (400 * GB / 8, 16),
    "v5p": (1200 * GB / 12, 4),
    "v6e": (800 * GB / 8, 16),
    "tpu7x": (1200 * GB / 12, 4),
}
GOOGLE = "cloud.google.com/tpu/pricing"
# Keyed by the first part of a topology: v5e of v5e:4x4.
TPUS = {
    accelerator.name: accelerator
    for accelerator in (
        tpu(
            "v4",
            "tpu v4",
            275,
            32 * GIB,
            1228 * GB,
            8 * 128 * 128 * 2,
            1,
            3.22,
            f"{GOOGLE}, August 2022",
        ),
        tpu(
            "v5e",
            "tpu v5 lite",
            197,
            16 * GIB,
            819 * GB,
            4 * 128 * 128 * 2,
            1,
            1.20,
            f"{GOOGLE}, November 2024",
        ),
        # v5p's price is unverified: it was recalled from memory, not looked up on the pricing page.
        tpu(
            "v5p",
            "tpu v5",
            459,
            95 * GIB,
            2765 * GB,
            8 * 128 * 128 * 2,
            1,
            4.20,
            f"{GOOGLE}, 2024, unverified",
        ),
        # v6e's documentation names two matrix units, which would need 3.5 GHz to reach the peak. The compiler (libtpu
        # 0.0.42) expects up to 456,000 FLOPs per cycle in a large product, which takes four units.
        tpu(
            "v6e",
            "tpu v6 lite",
            918,
            32 * GIB,
            1638 * GB,
            4 * 256 * 256 * 2,
            1,
            2.70,
            f"{GOOGLE}, November 2024",
        ),
        tpu("tpu7x", "tpu7x", 2307, 192 * GIB, 7380 * GB, 0, 2, None, ""),
    )
}

NVIDIA = "NVIDIA's datasheet, dense tensor cores"
GPUS = (
    Accelerator("H200 NVL", ("nvidia h200 nvl*",), 835e12, 141 * GB, 4800 * GB, sources=(NVIDIA, "")),
    Accelerator("H200", ("nvidia h200*",), 989e12, 141 * GB, 4800 * GB, sources=(NVIDIA, "")),
    Accelerator("H100 PCIe", ("nvidia h100 pcie*",), 756e12, 80 * GB, 2000 * GB, sources=(NVIDIA, "")),
    Accelerator("H100 NVL", ("nvidia h100 nvl*",), 835e12, 94 * GB, 3900 * GB, sources=(NVIDIA, "")),
    Accelerator("H100", ("nvidia h100*",), 989e12, 80 * GB, 3350 * GB, sources=(NVIDIA, "")),
    Accelerator("A100", ("nvidia a100*",), 312e12, 40 * GB, 1555 * GB, sources=(NVIDIA, "")),
    Accelerator("L4", ("nvidia l4",), 121e12, 24 * GB, 300 * GB, sources=(NVIDIA, "")),
    Accelerator("V100 (fp16)", ("tesla v100*", "nvidia v100*"), 125e12, 16 * GB, 900 * GB, sources=(NVIDIA, "")),
    Accelerator("T4 (fp16)", ("tesla t4*", "nvidia t4*"), 65e12, 16 * GB, 320 * GB, sources=(NVIDIA, "")),
)


def find(kind: str) -> Accelerator | None:
    """The accelerator that JAX calls `kind`, or None."""
    for accelerator in (*TPUS.values(), *GPUS):
        for known in accelerator.kinds:
            if kind.lower() == known or (known.endswith("*") and kind.lower().startswith(known[:-1])):
                return accelerator
    return None


def peak_of(device) -> float | None:
    """bf16 FLOP/s of a JAX device; None if it is not in the table, like every CPU."""
    accelerator = find(device.device_kind)
    return None if accelerator is None else accelerator.peak / accelerator.devices


def peak_of_all(mesh: Mesh, measure: bool) -> float | None:
    """Peak FLOP/s of all devices of a mesh together. None if the table lacks the device, unless `measure` is True.

    With `measure`, the peak of a device that the table lacks is measured. Raises BadInput if that device is not a CPU.
    """
    device = mesh.local_devices[0]
    known = peak_of(device)
    if known is not None:
        return known * mesh.size
    if not measure:
        return None
    if device.platform != "cpu":
        raise BadInput(f"measure_peak is only for CPUs: add {device.device_kind!r} to bert_fast/cost/accelerators.py")
    # One matrix product uses all cores of a host, even if JAX presents them as several devices.
    return measured_peak(device) * jax.process_count()


def measured_peak(device, size: int = 3072, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few large float32 matrix products on a device: about the most that a CPU reaches."""
    a = jax.device_put(jnp.ones((size, size)) / size, device)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
