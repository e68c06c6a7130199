"""Runs that combine two of the methods, or all four."""

import json

import pytest

from bert_fast import BadInput, encoder, inference
from bert_fast.train.compile import Programs
from bert_fast.train.log import read_rows
from helpers.interruption import interrupted
from helpers.small_runs import rows_without_clock, run, small_config
from helpers.tiers import tiers

# For each combination of methods, the most programs that a run of 40 steps may compile. A stage needs one program for
# each combination of layer counts that its spans run. If there are several spans, sampling is systematic: each count
# varies by at most one. Here theta falls within the first steps, in which other counts occur and add programs.
RUNS = {
    "stacking,early_bert": 4,
    "stacking,token_drop": 3,
    "stacking,layer_drop": 8,
    "early_bert,token_drop": 2,
    "early_bert,layer_drop": 4,
    "token_drop,layer_drop": 6,
    "mslt,token_drop": 5,
    "stacking,early_bert,token_drop,layer_drop": 20,
    "mslt,early_bert,token_drop,layer_drop": 30,
}


ALL_FOUR = "stacking,early_bert,token_drop,layer_drop"
QUICK = "stacking,token_drop"  # compiles the fewest programs of the combinations that grow the model
COMBINATIONS = tiers(RUNS, slow=[ALL_FOUR], quick=[QUICK])


def config_of(data_dir, name: str, **changes) -> dict:
    return small_config(
        data_dir,
        "size=tiny,debug,norm=pre,objective=mlm",
        methods=name.replace("mslt", "stacking"),
        stacking__variant="mslt" if "mslt" in name else "stacking",
        layer_drop__gamma=5.0,
        steps=40,
        phases="16:1",
        model__depth=4,
        log_every=10,
        eval__every=0,
        checkpoint__every=0,
        early_bert__search=0.05,
        **changes,
    )


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """Function from a name in RUNS to (folder, summary, number of train programs compiled). Runs each name once."""
    done = {}

    def of(name):
        if name not in done:
            workdir = tmp_path_factory.mktemp("run")
            compiled = []
            lower = Programs.lower

            def counting(self, program, *arguments):
                compiled.append(program)
                return lower(self, program, *arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Programs, "lower", counting)
                summary = run(config_of(small_shards, name), workdir)
            assert len(compiled) == len(set(compiled)), "a program was compiled twice"
            done[name] = workdir, summary, len(compiled)
        return done[name]

    return of


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_learns_and_reaches_full_depth_and_costs_less_than_dense(finished, name):
    workdir, summary, _ = finished(name)
    assert summary["flops"] < summary["flops_dense"]
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "train"]
    assert rows[-1]["mlm_loss"] < rows[0]["mlm_loss"]
    trained = encoder.load(workdir)
    assert trained.program.model.depth == 4
    result = inference.evaluate(str(workdir))
    assert result["mlm_loss"] == pytest.approx(summary["valid"]["mlm_loss"], abs=1e-5)
    for method in name.replace("mslt", "stacking").split(","):
        assert any(key.startswith(f"{method}/") for row in rows for key in row), f"{method} logs nothing"
    if "early_bert" in name:
        assert sum(trained.program.model.mlp_dim_L) < 4 * 64
        assert max(trained.program.model.heads_L) == 1


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_compiles_a_bounded_number_of_programs(finished, name):
    assert finished(name)[2] <= RUNS[name]


@pytest.mark.parametrize("at_step", tiers([5, 14, 33], slow=[14]))
def test_all_four_methods_together_resume_exactly(finished, small_shards, tmp_path, monkeypatch, at_step):
    interrupted(config_of(small_shards, ALL_FOUR), tmp_path, at_step, monkeypatch)
    run(config_of(small_shards, ALL_FOUR), tmp_path)
    whole = finished(ALL_FOUR)[0]
    assert rows_without_clock(tmp_path) == rows_without_clock(whole)
    stages = [json.loads((folder / "stages.json").read_text()) for folder in (tmp_path, whole)]
    assert stages[0] == stages[1]


ORDERS = [
    ("token_drop,stacking", "stacking"),
    ("early_bert,stacking", "stacking"),
    ("stacking,stacking", "stacking"),
    ("early_bert,early_bert", "early_bert"),
    ("token_drop,token_drop", "token_drop"),
]


@pytest.mark.parametrize(("names", "message"), ORDERS)
def test_error_about_an_invalid_combination_names_the_method(small_shards, tmp_path, names, message):
    with pytest.raises(BadInput, match=message):
        run(config_of(small_shards, names), tmp_path / "run")
    assert not (tmp_path / "run").exists()
