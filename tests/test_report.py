"""Reports: what they read, what they show, and what they refuse."""

import html
import importlib.util
import itertools
import json
import math
import pathlib
import shutil
from html.parser import HTMLParser

import pytest

from bert_fast import BadInput, methods
from bert_fast.compare.page import half_width
from bert_fast.method import Clock
from bert_fast.methods import layer_drop
from bert_fast.reporting import axes, chart, differences, page, panels, plans, png, read, scales, speed, write
from bert_fast.reporting.blocks import Table
from bert_fast.reporting.chart import ChartLine
from bert_fast.reporting.markup import tag
from bert_fast.reporting.scales import AxisUnit, Scale
from bert_fast.train import step_costs
from bert_fast.train.log import read_rows
from helpers import command_line
from helpers.made_runs import TEXT, write_rows, write_run, write_scores, write_study
from helpers.small_runs import run, small_config


@pytest.fixture(scope="module")
def runs(small_shards, tmp_path_factory) -> pathlib.Path:
    """Folders of runs, made once and never changed."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "dense", small_shards)
    write_run(root / "dropping", small_shards, "layer_drop", layer_drop__gamma=0.2, layer_drop__theta=0.3)
    write_run(root / "tokens", small_shards, "token_drop", 0.1)
    write_run(root / "mslt", small_shards, "stacking", stacking__variant="mslt")
    return root


@pytest.fixture(scope="module")
def study(small_shards, tmp_path_factory) -> pathlib.Path:
    return write_study(tmp_path_factory.mktemp("studies") / "mine", small_shards)


def page_of(*paths) -> str:
    return page.page_of(read.read(paths))[0].html()


def markdown_of(*paths) -> str:
    return page.page_of(read.read(paths))[0].markdown("")


class Checker(HTMLParser):
    """Collects references to anything outside the page, and checks that elements are closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.outside, self.ids = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, name, attributes):
        if name not in ("meta", "input", "line", "rect", "path", "circle"):
            self.open.append(name)
        self.see(name, dict(attributes))

    def handle_startendtag(self, name, attributes):
        self.see(name, dict(attributes))

    def see(self, name, attributes):
        self.ids += [attributes["id"]] if "id" in attributes else []
        for key in ("href", "src", "srcset", "action", "data"):
            if key in attributes and not attributes[key].startswith("#"):
                self.outside.append((name, attributes[key]))

    def handle_endtag(self, name):
        assert self.open.pop() == name


def test_page_of_a_study_is_complete_and_loads_nothing_from_outside(study):
    html = page_of(study)
    found = Checker(html)
    assert not found.outside
    assert len(set(found.ids)) == len(found.ids)
    assert "http" not in html.split("</style>", 1)[1].replace("http://www.w3.org", "")
    assert "url(#hatch)" in html
    assert "@import" not in html
    for name in ("results", "loss", "plan", "methods", "scores", "speed", "config"):
        assert name in found.ids


def test_names_and_word_pieces_from_files_are_escaped(study):
    html = page_of(study)
    assert "tokens <b>&" not in html
    assert "tokens &lt;b&gt;&amp;" in html
    assert "<b>" not in html


def test_a_tag_escapes_text_and_attributes_but_not_tags():
    assert tag("p", "<&", tag("b", 'x"'), title='"<') == '<p title="&quot;&lt;">&lt;&amp;<b>x&quot;</b></p>'


def test_study_table_has_scores_and_differences_with_their_significance(study):
    text = markdown_of(study)
    budget = json.loads((study / "results.json").read_text())["budgets"]["tokens:2e4"]["arms"]
    best = budget["all four"]
    assert best["resolved"]
    assert not budget["layer dropping"]["resolved"]
    half = half_width(best)
    middle = best["difference"]
    assert f"| {middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}] |" in text
    middle, half = budget["layer dropping"]["difference"], half_width(budget["layer dropping"])
    assert f"| {middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}] (unresolved) |" in text
    assert f"| {best['t']:+.1f} |" in text
    assert "all four ends lowest" in text
    assert "| 83.00 ± 1.50 |" in text  # a score after fine-tuning
    assert "| 80.5 |" in text  # its mean over the study's seeds


def test_unfinished_study_is_shown_without_its_table(study, tmp_path):
    shutil.copytree(study / "runs", tmp_path / "mine/runs")
    text = markdown_of(tmp_path / "mine")
    assert "has not written its results yet" in text
    assert "| all-four, tokens:2e4, seed 1 |" in text


def test_packed_rows_suffice_for_the_losses_of_a_study(study, tmp_path):
    import gzip

    (tmp_path / "packed").mkdir()
    shutil.copy(study / "results.json", tmp_path / "packed")
    with gzip.open(tmp_path / "packed/rows.jsonl.gz", "wt") as file:
        for row in read_rows(study / "runs/tokens=2e4/dense/seed=0/metrics.jsonl"):
            print(json.dumps({"arm": "dense", "budget": "tokens:2e4", "seed": 0, **row}), file=file)
    text = markdown_of(tmp_path / "packed")
    assert "| dense, seed 0 | 40 |" in text
    assert "own clock" in text
    (tmp_path / "packed/rows.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(BadInput, match=r"rows.jsonl.gz cannot be read .*compare"):
        read.read([tmp_path / "packed"])


def test_runs_that_exist_only_as_records_are_shown_beside_the_others(study, tmp_path):
    import gzip

    shutil.copytree(study, tmp_path / "mine")
    first, second = (tmp_path / "mine/runs/tokens=2e4/dense" / f"seed={seed}" for seed in (0, 1))
    with gzip.open(tmp_path / "mine/rows.jsonl.gz", "wt") as file:
        for seed, folder in enumerate((first, second)):
            for row in read_rows(folder / "metrics.jsonl"):
                print(json.dumps({"arm": "dense", "budget": "tokens:2e4", "seed": seed, **row}), file=file)
    before = len(read.read([tmp_path / "mine"]).runs)
    shutil.rmtree(first)
    assert len(read.read([tmp_path / "mine"]).runs) == before


def test_report_names_the_best_arm_by_differences_between_equal_seeds():
    def arm(loss, difference):
        return {"mlm_loss": loss, "difference": difference, "resolved": False, "runs": [{}, {}]}

    worse = {"arms": {"dense": arm(5.1, None), "a": arm(5.02, 0.02)}}  # only a lacks the seed with a high loss
    assert differences.sentence(worse, "dense", "") == "No arm ends lower than dense: 5.100 nats."
    for unpaired in ({"a": arm(5.0, None)}, {"dense": arm(5.1, None), "a": arm(5.0, None)}):
        assert differences.sentence({"arms": unpaired}, "dense", "") == "No arm has a seed in common with dense yet."
    better = {"arms": {"dense": arm(5.1, None), "a": arm(5.2, -0.03)}}
    assert differences.sentence(better, "dense", "").startswith("a ends lowest: 5.200 nats, 0.030 below dense.")


def test_reference_seconds_come_from_the_table_of_step_costs(runs):
    run = read.read([runs / "dropping"]).runs[0]
    costs = step_costs.read(runs / "dropping/costs.json")
    (curve,) = costs.curves.values()
    low, high = curve
    each = (high.seconds - low.seconds) / (high.flops - low.flops)  # linear in FLOPs, so only the totals matter
    expected = run.last["flops"] * each + run.last["step"] * (low.seconds - each * low.flops)
    assert axes.reference_seconds(run)[-1] == pytest.approx(expected)
    assert "one table of step costs (measured on a test)" in axes.clock_of([run]).words


def test_own_seconds_are_used_and_named_unless_every_run_has_reference_seconds(runs, small_shards, tmp_path):
    write_run(tmp_path / "bare", small_shards, costs=False)
    both = read.read([runs / "dense", tmp_path / "bare"]).runs
    clock = axes.clock_of(both)
    assert "own clock, because not every run has a table" in clock.words
    assert axes.places(both[0], "seconds", clock)[-1] == both[0].last["seconds"]
    assert "different tables" in axes.clock_of(read.read([runs / "dense", runs / "mslt"]).runs).words


def test_runs_of_different_fingerprints_get_a_warning(runs, small_shards, tmp_path):
    write_run(tmp_path / "other", small_shards, fingerprint="bad")
    assert "not comparable" not in page_of(runs / "dense", runs / "tokens")
    assert (
        "not comparable. The runs were evaluated on different examples or masks: dense (f00); other (bad)"
        in page_of(runs / "dense", tmp_path / "other")
    )


def test_unfinished_run_without_evaluations_is_shown_with_its_step(small_shards, tmp_path):
    write_run(tmp_path / "run", small_shards, "token_drop", finished=False, evaluated=False, costs=False, until=20)
    text, html = markdown_of(tmp_path / "run"), page_of(tmp_path / "run")
    assert "run is not finished: step 20 of 40." in text
    assert "step 20 of 40 | - | - |" in text
    assert 'class="now"' in html


def test_losses_that_are_not_finite_are_left_out_of_charts_and_named(runs, tmp_path):
    shutil.copytree(runs / "dense", tmp_path / "run")
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    for row in rows[2:4]:
        row["mlm_loss"] = math.nan
    write_rows(tmp_path / "run", rows)
    html = page_of(tmp_path / "run")
    assert f"a loss that is not finite, first at step {rows[2]['step']}" in html
    assert "not finite</td>" in html
    for attributes in html.split("<path ")[1:]:
        assert "nan" not in attributes.split("/>")[0]


def test_a_line_has_a_gap_where_it_is_not_finite():
    svg = chart.chart(
        [ChartLine("a", 0, [(0, 1.0), (1, math.nan), (2, 1.0), (3, 2.0)])], AxisUnit("steps"), "y", "about"
    )
    line = svg.split('class="line"')[0].rsplit('d="', 1)[1]
    assert line.count("M") == 2
    assert line.count("L") == 1


def test_plan_shows_which_layers_are_frozen_or_drop_tokens_and_how_often_each_layer_runs(runs):
    mslt = plans.rows_of(plans.plan_of(read.read([runs / "mslt"]).runs[0]))
    assert [row[3] for row in mslt if row[5] == "no"] == ["1", "1 to 2", "1 to 3"]
    tokens = plans.rows_of(plans.plan_of(read.read([runs / "tokens"]).runs[0]))
    assert [(row[3], row[6]) for row in tokens] == [
        ("1", "16 of 16"),
        ("2", "8 of 16"),
        ("3", "8 of 16"),
        ("4", "16 of 16"),
    ]
    (stage,) = plans.plan_of(read.read([runs / "dropping"]).runs[0]).stages
    expected = [
        sum(
            layer_drop.keep_and_scale(4, layer_drop.theta_at(step, 40, 0.3, 0.2, "paper"), "paper")[0][layer]
            for step in range(40)
        )
        / 40
        for layer in range(4)
    ]
    found = [layer.on.mean() for layer in stage[1]]
    assert found == pytest.approx(expected, abs=0.2)  # 40 draws
    assert found[0] > found[3]


def test_plan_of_layer_dropping_is_divided_into_slices_of_at_least_six_steps(runs):
    """In each slice, the mean number of layers that run is above 0 and at most the depth, 4."""
    run = read.read([runs / "dropping"]).runs[0]
    (stage,) = plans.plan_of(run).stages
    assert Clock(0, 40).steps == run.planned_steps
    ran = [row["layers_run"] for row in run.split("train")]
    assert len(ran) == 8
    per_slice = sum(layer.on for layer in stage[1])
    assert len(per_slice) == 6
    assert 0 < per_slice.min() <= per_slice.max() <= 4


def test_every_method_gets_a_panel_from_its_keys(study):
    html = page_of(study)
    for name in ("layer_drop", "token_drop", "early_bert", "stacking"):
        assert f"<h3>{name}</h3>" in html
    assert "layers are skipped at random" in html
    assert "Probability that the topmost layer runs." in html
    assert "in every" not in html
    text = markdown_of(study)
    assert "| kept | Share of an example's positions that the middle layers update. | 0.5 |" in text
    assert "| 5 | 38, 39, 40, 41 |" in text
    assert "| 1 | the | the |" in text


def test_panel_of_an_unknown_method_is_also_drawn(runs, tmp_path):
    shutil.copytree(runs / "dense", tmp_path / "run")
    rows = [
        {**row, "mine/<heat>": row["step"] / 7, "mine/sizes": [1, 2]}
        for row in read_rows(tmp_path / "run/metrics.jsonl")
    ]
    write_rows(tmp_path / "run", rows)
    html = page_of(tmp_path / "run")
    assert "<h3>mine</h3>" in html
    assert "&lt;heat&gt;" in html
    assert "sizes in each layer" in html


def test_methods_explain_each_of_their_keys():
    known = methods.keys()
    assert known["layer_drop"].keys() == {"theta"}
    assert {"head_distance", "neurons"} <= known["early_bert"].keys()
    assert known["mask_later"] == {}


def test_numbers_share_a_chart_if_their_last_words_agree():
    assert panels.charts_of(["head_distance", "head_distance_max", "neuron_penalty", "theta"]) == {
        "distance": ["head_distance", "head_distance_max"],
        "penalty": ["neuron_penalty"],
        "theta": ["theta"],
    }


def test_stalls_and_goodput_come_from_the_clocks(runs):
    run = read.read([runs / "dense"]).runs[0]
    found = speed.stalls(run)
    assert [(one.begin, one.end) for one, _ in found] == [(0, 5), (20, 25)]
    assert found[1][1] == pytest.approx(0.49)
    assert speed.goodput(run) == pytest.approx(run.last["seconds"] / (run.last["seconds"] + 1.0 + 0.4))


def test_config_differences_leave_out_defaults_of_methods(runs):
    text = markdown_of(runs / "dense", runs / "dropping")
    assert "| layer_drop.gamma | - | 0.2 |" in text
    assert "| methods | '' | layer_drop |" in text
    assert "layer_drop.variant" not in text
    assert "learning_rate.peak" not in text


def test_config_of_a_single_run_is_listed(runs):
    assert "| learning_rate.peak | 0.01 |" in markdown_of(runs / "dense")


def test_folder_that_is_named_twice_is_shown_once(runs):
    assert len(read.read([runs / "dense", runs / "tokens/../dense"]).runs) == 1


def test_scores_alone_make_a_report(tmp_path):
    write_scores(tmp_path / "a", 80.0)
    write_scores(tmp_path / "b", 82.0, deviation=None)
    text = markdown_of(tmp_path / "a", tmp_path / "b")
    assert "| mrpc | a | 3e-05 | 2 | 80.00 ± 1.50 | 80.00 | 81.00 | 68.40 |" in text
    assert "| mrpc | b | 3e-05 | 2 | 82.00 | 82.00 | 83.00 | - |" in text
    assert [path.name for path in write([tmp_path / "a"], tmp_path / "out")] == ["report.html", "report.md"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "give run folders"),
        (["nowhere"], "nowhere does not exist: expected the folder of a pretrain run"),
        (["empty"], "empty is not a run folder"),
        (["."], r"is not a run folder: .* did you mean .*dense"),
        (["unwritten"], r"unwritten has no rows in metrics.jsonl yet"),
        (["mine", "dense"], "mine is a study: report it alone"),
        (["broken"], r"results.json cannot be read"),
    ],
)
def test_what_cannot_be_reported_is_refused(paths, message, runs, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "dense", "dense")
    shutil.copytree(study, "mine")
    for name in ("empty", "unwritten", "broken"):
        pathlib.Path(name).mkdir()
    shutil.copy("dense/stages.json", "unwritten")
    pathlib.Path("broken/results.json").write_text("{")
    with pytest.raises(BadInput, match=message):
        read.read(paths)


def test_command_writes_the_files_and_prints_their_names(runs, tmp_path):
    done = command_line.bert_fast("report", runs / "dense", runs / "tokens", f"--out={tmp_path}/new/folder")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/new/folder/report{kind}" for kind in (".html", ".md", ".png")]
    assert (tmp_path / "new/folder/report.png").read_bytes().startswith(b"\x89PNG")
    assert "(report.png)" in (tmp_path / "new/folder/report.md").read_text()
    done = command_line.bert_fast("report", runs / "dense", f"--out={tmp_path}/one.html")
    assert done.stdout == f"{tmp_path}/one.html\n"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.pdf", "expected a folder, or a file that ends in .html, .md, .png"),
        ("file", "is a file without a known ending"),
        ("file/x.html", "file cannot be written (File exists): give another --out"),
    ],
)
def test_command_refuses_what_it_cannot_write(out, message, runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = command_line.bert_fast("report", runs / "dense", f"--out={tmp_path}/{out}")
    assert done.returncode == 2
    assert message in done.stderr


def test_without_matplotlib_only_a_png_is_refused(runs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert not png.available()
    assert [path.suffix for path in write([runs / "dense"], tmp_path)] == [".html", ".md"]
    with pytest.raises(BadInput, match=r'x.png needs matplotlib: pip install "bert_fast\[report\]"'):
        write([runs / "dense"], tmp_path / "x.png")


def test_writing_a_report_twice_gives_the_same_file(runs, tmp_path):
    write([runs / "dense"], tmp_path / "a.html")
    write([runs / "dense"], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_markdown_cells_cannot_break_their_table():
    table = Table("t", ["a|b", "n"], [["x|<y>\nz", -1]])
    assert table.markdown().splitlines()[2] == "| x\\|&lt;y> z | -1 |"
    assert "\N{MINUS SIGN}1" in table.html()


@pytest.mark.parametrize(
    ("scale", "most", "expected"),
    [
        (Scale(0, 100), 7, [0, 20, 40, 60, 80, 100]),
        (Scale(6.31, 8.27), 6, [6.5, 7, 7.5, 8]),
        (Scale(0, 0.004), 6, [0, 0.001, 0.002, 0.003, 0.004]),
        (Scale(30, 20_000, True), 6, [30, 100, 300, 1000, 3000, 10_000]),
        (Scale(10, 100, True), 7, [10, 20, 50, 100]),
    ],
)
def test_ticks_are_round_and_few(scale, most, expected):
    assert scale.ticks(most) == pytest.approx(expected)


def test_scale_is_logarithmic_where_values_span_decades():
    assert scales.scale_of([1, 1000]).log
    assert not scales.scale_of([0, 1000]).log
    assert not scales.scale_of([1, 10]).log
    assert scales.scale_of([3.0, 3.0]).place(3.0) == pytest.approx(0.5)
    assert scales.scale_of([math.nan]) == Scale(0.0, 1.0)


def test_thinned_lines_keep_their_extremes_and_ends():
    points = [(float(x), 100.0 if x == 777 else -5.0 if x == 1234 else x % 7) for x in range(5000)]
    kept = chart.thinned(points)
    assert len(kept) <= chart.POINTS
    assert {points[0], points[777], points[1234], points[-1]} <= set(kept)


def test_labels_at_the_ends_of_lines_do_not_overlap():
    tops = chart.spread([100.0, 101.0, 99.0, 290.0, 295.0], 300)
    ordered = sorted(tops)
    assert all(below - above >= chart.LINE_HEIGHT - 1e-9 for above, below in itertools.pairwise(ordered))
    assert ordered[-1] <= 300
    assert tops[2] < tops[0] < tops[1] < tops[3] < tops[4]
    assert chart.spread([1.0, 2.0], 300) == [1.0, 1.0 + chart.LINE_HEIGHT]


@pytest.mark.slow
def test_keys_of_a_real_run_are_explained_and_drawn(small_shards, tmp_path):
    names = "stacking,early_bert,token_drop"
    changes = {"methods": names, "phases": "16:1", "steps": 40, "log_every": 1, "early_bert__search": 0.2}
    config = small_config(small_shards, TEXT, model__depth=4, eval__every=0, checkpoint__every=0, **changes)
    run(config, tmp_path / "run")
    reported = {key for row in read_rows(tmp_path / "run/metrics.jsonl") for key in row if "/" in key}
    assert reported == {f"{name}/{key}" for name in names.split(",") for key in methods.keys()[name]}
    page_text = page_of(tmp_path / "run")
    assert all(html.escape(text) in page_text for name in names.split(",") for text in methods.keys()[name].values())
    assert not read.warnings_of(read.read([tmp_path / "run"]))


def test_runs_of_a_method_may_have_different_keys(runs, small_shards, tmp_path):
    write_run(tmp_path / "random", small_shards, "token_drop", 0.1)
    rows = [
        {key: value for key, value in row.items() if not key.startswith("token_drop/")}
        for row in read_rows(tmp_path / "random/metrics.jsonl")
    ]
    write_rows(tmp_path / "random", rows)
    assert "most important" in page_of(tmp_path / "random", runs / "tokens")
