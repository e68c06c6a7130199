"""The search finds the cheapest choice that fits, and skips choices that are sure to cost more."""

import pathlib

import pytest

from bert_fast import BadInput
from bert_fast.commands.plan import pretrain_with
from bert_fast.cost.accelerators import TPUS
from bert_fast.planner import cost_report, estimate, search
from helpers.estimates import V5E, made_plan
from test_planner import SILENT, settings_of

RECOMPUTED = {"none": (1, 1), "attention": (1.1, 0.5), "block": (1.3, 0.25)}  # relative time and memory


@pytest.fixture
def made(monkeypatch):
    """Replaces the planner by a model of 8 chips, each with room for 16 examples. Returns the list of its calls."""
    planned: list = []

    def plan(settings, where, cache, say):
        recompute = settings.model.recompute
        mesh, rows = settings.mesh, settings.batch_size / settings.mesh.data / settings.mesh.fsdp
        planned.append((settings.batch_size, settings.micro_batches, recompute, (mesh.data, mesh.fsdp, mesh.tensor)))
        slower, memory = RECOMPUTED[recompute]
        fits = rows / settings.micro_batches * memory * (1 if mesh.data > 1 else 0.5) <= 16
        # A fixed cost per step and per micro-batch, and a cost per example.
        cycles = 1e6 * (1 + 0.1 * settings.micro_batches + slower * rows) * (1 if mesh.data > 1 else 1.2)
        changes = {"steps": settings.steps, "batch_size": settings.batch_size, "problem": "" if fits else "too large"}
        return made_plan(cycles={"estimate": cycles, "schedule": 1e6} if fits else {}, **changes)

    monkeypatch.setattr(estimate, "plan", plan)
    return planned


def found(**changes):
    return search.search(settings_of(**changes), V5E, pathlib.Path("unused"), SILENT)


def test_batch_grows_while_examples_become_cheaper(made):
    every, own = found(batch_size=32)
    assert own.choice.batch_size == 32
    # A chip has room for 16 examples at a time. In larger batches, micro-batches share the fixed cost of a step. The
    # search stops when the gain is below one percent.
    sizes = sorted({size for size, *_ in made})
    assert sizes[0] == 32
    assert [each.seconds for each in every] == sorted(each.seconds for each in every)
    by_size = {each.choice.batch_size: each.seconds for each in reversed(every)}
    assert by_size[sizes[-1]] > (1 - search.WORTH) * by_size[sizes[-2]]
    assert by_size[sizes[-2]] < (1 - search.WORTH) * by_size[sizes[-3]]


def test_ways_to_save_memory_are_not_tried_if_the_batch_fits(made):
    found(batch_size=64)
    assert [each for each in made if each[0] == 64] == [(64, 1, "none", (8, 1, 1))]


def test_micro_batches_and_meshes_are_tried_until_something_fits(made):
    every, own = found(batch_size=256)  # 32 examples per chip
    tried = [each for each in made if each[0] == 256]
    assert tried == [
        (256, 1, "none", (8, 1, 1)), (256, 2, "none", (8, 1, 1)), (256, 1, "attention", (8, 1, 1)),
        (256, 1, "none", (1, 8, 1)),
    ]  # fmt: skip
    assert own.choice.micro_batches == 2
    assert own in every


def test_recomputation_is_tried_only_with_fewer_micro_batches_than_are_needed_without_it(made):
    search.that_fit(settings_of(batch_size=512), 512, 8, lambda settings: estimate.plan(settings, *[None] * 3))
    of_data = [(count, recompute) for size, count, recompute, mesh in made if mesh == (8, 1, 1)]
    # A chip has 64 examples, which need 4 micro-batches. Recomputing attention halves the memory, so 2 are enough.
    # Recomputing whole blocks quarters it, so 1 is enough.
    assert of_data == [(1, "none"), (2, "none"), (4, "none"), (1, "attention"), (2, "attention"), (1, "block")]


def test_smaller_batches_are_tried_if_nothing_else_fits(made, monkeypatch):
    monkeypatch.setattr(search, "tried", lambda plan, choice, settings: (
        plan(choice.settings(settings)) if choice.micro_batches == 1 and choice.mesh.data > 1 else None
    ))  # fmt: skip
    every, own = found(batch_size=2048)
    assert own is None
    assert every[0].choice.batch_size == 128
    said = cost_report.choices(every, own, settings_of(batch_size=2048), V5E)
    assert "a batch of 2,048 does not fit" in said


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(estimate, "plan", lambda *_: made_plan(problem="too large", cycles={}))
    with pytest.raises(BadInput, match=r"not even one example per device fits on v5e:2x4: use a larger chip"):
        found()


def test_unknown_clock_and_fixed_batches_are_refused():
    unknown = V5E._replace(topology="tpu7x:2x2x1", chip=TPUS["tpu7x"])
    with pytest.raises(BadInput, match=r"--search needs a chip whose clock is known, .* other than tpu7x:2x2x1"):
        search.search(settings_of(), unknown, pathlib.Path("unused"), SILENT)
    with pytest.raises(BadInput, match=r"--search needs phases without batch sizes: leave out @BATCH"):
        found(phases="128@16:0.9,512@4:0.1")


def test_choice_that_cannot_be_planned_is_left_out(made, monkeypatch):
    planned = estimate.plan

    def refuse(settings, *more):
        if settings.batch_size == 32:
            raise BadInput("does not divide")
        return planned(settings, *more)

    monkeypatch.setattr(estimate, "plan", refuse)
    every, own = found(batch_size=32)
    assert own is None
    assert {each.choice.batch_size for each in every} <= {8, 16, 64, 128, 256}


def test_reason_is_given_if_nothing_can_be_planned(monkeypatch):
    def refuse(*_):
        raise BadInput("the config is wrong")

    monkeypatch.setattr(estimate, "plan", refuse)
    with pytest.raises(BadInput, match="the config is wrong"):
        found(batch_size=32)


def test_number_of_examples_stays_the_same():
    choice = search.Choice(64, 2, "none", search.Mesh(1, 8, 1))
    changed = choice.settings(settings_of(batch_size=16, steps=1000))
    assert (changed.steps, changed.batch_size, changed.micro_batches, changed.mesh.fsdp) == (250, 64, 2, 8)
    assert changed.schedule.steps == 250
    budgeted = settings_of(batch_size=16, budget="tokens:1e6")
    assert choice.settings(budgeted).steps == budgeted.steps
    assert "steps" not in choice.flags(budgeted)


def test_command_keeps_the_given_settings_except_those_that_the_search_replaces():
    argv = ["--topology=v5e:2x4", "--config=bert:size=base", "--compare=mslt", "--compare.seed=3"]
    argv += ["--config.batch_size=8", "--config.model.dtype=bfloat16"]
    changes = {"batch_size": 64, "mesh.data": 8}
    done = pretrain_with(argv, "config", changes)
    assert done.partition(" pretrain ")[2] == (
        "--config=bert:size=base --config.model.dtype=bfloat16 --config.batch_size=64 --config.mesh.data=8 "
        "--workdir=DIR --config.data.dir=DIR"
    )
    assert "pretrain --config=mslt --config.seed=3 --config.batch_size=64" in pretrain_with(argv, "compare", changes)


def test_report_shows_the_cheapest_first_and_the_runs_own_batch(made):
    every, own = found(batch_size=32)
    lines = cost_report.choices(every, own, settings_of(batch_size=32), V5E).splitlines()
    assert lines[2].split()[-1] == "1.00"
    assert (
        f"with a batch of 32, the least cost is {own.seconds / every[0].seconds:.2f} times that of the first row: "
        "--config.batch_size=32" in lines[-1]
    )
