"""Configs of DeepSpeed and TensorFlow Model Garden become configs of this package, and none of their keys is lost."""

import json

import numpy as np
import pytest
import yaml

from bert_fast import BadInput, convert, methods
from bert_fast.commands import config_flag
from bert_fast.convert import conversion, deepspeed
from bert_fast.methods.layer_drop import theta_at
from bert_fast.train import settings, timeline
from helpers.command_line import ROOT, bert_fast
from helpers.config_files import VOCAB

FOLDER = ROOT / "tests/fixtures/foreign"
CASES = {
    "pld": ("pld.json", "bing_bert.json", "--devices=64"),
    "lamb": ("lamb.json", "bing_bert_large.json"),
    "random_ltd": ("random_ltd.json", "--base=bert:size=large,norm=pre", "--steps=1000000"),
    "dynamic_train": ("dynamic_train.json", "--steps=20000"),
    "packed": ("token_drop_packed.yaml", "token_drop_model.yaml"),
    "nsp": ("token_drop_nsp.yaml", "token_drop_model.yaml"),
}


def command(out, *arguments):
    files = [argument if argument.startswith("--") else FOLDER / argument for argument in arguments]
    return bert_fast("convert", *files, f"--out={out}")


def made(spec):
    found = settings.make(config_flag.load(str(spec), {}).to_dict(), VOCAB, tuple(methods.known()))
    return found, timeline.stages(found, methods.make(found.methods))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "mine.py"
    return request.param, out, command(out, *CASES[request.param])


def test_converted_config_loads_and_names_what_it_lacks(case):
    name, out, done = case
    assert done.returncode == 0, done.stderr
    found, stages = made(out)
    assert found.model.dtype == ("bfloat16" if name not in ("packed", "nsp") else "float32")
    assert sum(stage.steps for stage in stages) == found.steps
    assert "Not converted:" in out.read_text()


def test_converted_config_shrinks_with_debug(case):
    found, _ = made(f"{case[1]}:debug")
    assert (found.steps, found.model.width) == (20, 32)


def test_every_key_of_the_files_is_reported(case):
    _, _, done = case
    said = set(done.stdout.replace("=", " ").replace(",", " ").split())
    for name in CASES[case[0]]:
        if not name.startswith("--"):
            text = (FOLDER / name).read_text()
            values = json.loads(text) if name.endswith(".json") else yaml.load(text, convert.Loader)
            missing = [key for key in leaves(values) if not any(part in said for part in parents(key))]
            assert not missing


def leaves(tree, prefix=""):
    if not isinstance(tree, dict) or not tree:
        return [prefix]
    return [leaf for key, value in tree.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else key)]


def parents(key):
    """The key, and the groups around it: a group may be reported as a whole."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def converted(tmp_path, *arguments):
    done = command(tmp_path / "mine.py", *arguments)
    assert done.returncode == 0, done.stderr
    return made(tmp_path / "mine.py")[0]


def test_progressive_layer_dropping_equals_deepspeeds(tmp_path):
    found = converted(tmp_path, *CASES["pld"])
    ((name, arguments),) = found.methods
    assert name == "layer_drop"
    assert (arguments["theta"], arguments["gamma"], arguments["variant"]) == (0.5, 0.001, "deepspeed")
    theta = theta_at(1001, found.steps, arguments["theta"], arguments["gamma"], arguments["variant"])
    assert theta == pytest.approx(0.68394, abs=1e-5)  # (1 - 0.5) exp(-0.001 x 1000) + 0.5
    assert (found.batch_size, found.micro_batches, found.steps) == (4096, 4, 200_000)
    assert (found.model.norm, found.model.residual_init_std) == ("pre", pytest.approx(0.02 / np.sqrt(24)))
    optimizer = found.optimizer
    assert (optimizer.eps, optimizer.bias_correction, optimizer.clip_norm) == (1e-8, False, 1.0)
    # bing_bert's schedule "LE": see configs/layer_drop.py.
    assert [found.schedule(step) for step in (2_000, 4_000, 104_000)] == pytest.approx([5e-4, 1e-3, 1e-3 * 0.99**100])


def test_layer_dropping_that_is_not_enabled_is_left_out(tmp_path):
    content = json.loads((FOLDER / "pld.json").read_text())
    content["progressive_layer_drop"]["enabled"] = False
    (tmp_path / "ds.json").write_text(json.dumps(content))
    done = command(tmp_path / "mine.py", str(tmp_path / "ds.json"))
    assert "progressive_layer_drop.theta=0.5, progressive_layer_drop.gamma=0.001: layer dropping is not" in done.stdout
    assert made(tmp_path / "mine.py")[0].methods == ()


def test_lamb_of_bing_bert(tmp_path):
    found = converted(tmp_path, *CASES["lamb"])
    assert (found.optimizer.name, found.batch_size, found.steps) == ("lamb", 65_536, 7_500)
    assert (found.model.depth, found.model.width, found.model.heads) == (24, 1024, 16)
    assert (found.schedule.warmup_steps, found.schedule.rate, found.schedule.interval) == (450, 0.9, 250)


@pytest.mark.parametrize("name", ["random_ltd", "dynamic_train"])
def test_random_ltd_updates_as_many_tokens_as_deepspeed_in_the_same_layers(tmp_path, name):
    found = converted(tmp_path, *CASES[name])
    ((_, arguments),) = found.methods
    assert (arguments["scores"], arguments["boundary"], found.model.depth) == ("random", 1, 24)
    least, most, growing, by = {"random_ltd": (128, 512, 1_300_000, 16), "dynamic_train": (256, 512, 10_682, 16)}[name]
    tokens = np.full(found.steps, most)
    for step in range(0, min(growing, found.steps), max(found.steps // 5_000, 1)):  # as RandomLTDScheduler.get_value
        value = int(step / growing * (most - least) + least)
        tokens[step : step + max(found.steps // 5_000, 1)] = min(value - value % by, most)
    tokens[growing:] = most
    share = arguments["keep"] * (1 - arguments["full_tail"]) + arguments["full_tail"]
    assert share == pytest.approx(tokens.mean() / most, abs=2e-3)
    stage = made(tmp_path / "mine.py")[1][0]
    dropping = [layer for span in stage.program.plan if span.queries for layer in range(span.start, span.stop)]
    assert dropping == list(range(1, 23))


def test_token_dropping_of_model_garden(tmp_path):
    found = converted(tmp_path, *CASES["packed"])
    ((name, arguments),) = found.methods
    assert (name, arguments["keep"], arguments["beta"], arguments["start"]) == ("token_drop", 0.5, 0.995, 10.0)
    assert (found.data.objective, found.batch_size, found.steps) == ("mlm", 512, 1_000_000)
    assert (found.optimizer.eps, found.optimizer.bias_correction) == (1e-7, True)
    assert (found.eval.examples, found.eval.every, found.checkpoint.keep) == (64 * 512, 1000, 5)
    nsp = converted((tmp_path / "nsp"), *CASES["nsp"])
    assert (nsp.data.objective, nsp.model.pooler) == ("mlm+nsp", True)


def test_number_of_kept_tokens_becomes_a_share_of_the_length(tmp_path):
    model = {"encoder": {"type": "any", "any": {"token_keep_k": 64, "token_allow_list": [100, 101, 102, 103, 1996]}}}
    content = {"task": {"model": model, "train_data": {"seq_length": 128, "max_predictions_per_seq": 20}}}
    (tmp_path / "td.yaml").write_text(yaml.safe_dump(content))
    done = command(tmp_path / "mine.py", str(tmp_path / "td.yaml"))
    assert dict(made(tmp_path / "mine.py")[0].methods)["token_drop"]["keep"] == 0.5
    assert "1996]: here, only special tokens are always kept first" in done.stdout


def test_schedules_of_deepspeed(tmp_path):
    params = {"warmup_max_lr": 2e-4, "warmup_num_steps": 100, "total_num_steps": 1000}
    content = {
        "train_batch_size": "auto",
        "scheduler": {"type": "WarmupDecayLR", "params": params},
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-4, "betas": [0.8, 0.99]}},
        "wandb": {"enabled": True, "project": "mine"},
    }
    (tmp_path / "ds.json").write_text(json.dumps(content))
    done = command(tmp_path / "mine.py", str(tmp_path / "ds.json"))
    found = made(tmp_path / "mine.py")[0]
    assert [found.schedule(step) for step in (50, 100, 550, 1000)] == pytest.approx([1e-4, 2e-4, 1e-4, 0])
    assert (found.optimizer.b1, found.optimizer.b2, found.optimizer.bias_correction) == (0.8, 0.99, True)
    assert found.sinks == ("wandb",)
    assert "train_batch_size=auto: the program that read the file chose the value" in done.stdout
    assert "warmup_type=log: here, the rate climbs linearly" in done.stdout


def test_unknown_keys_are_named(tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 8, "zero_optimisation": {"stage": 1}}))
    done = command(tmp_path / "mine.py", str(tmp_path / "ds.json"))
    assert "zero_optimisation={'stage': 1}: unknown to the converter" in done.stdout
    assert "zero_optimisation={'stage': 1}: unknown to the converter" in (tmp_path / "mine.py").read_text()


def test_kept_tokens_of_a_schedule():
    assert deepspeed.kept((128, 512, 4, 1), 4) == (round((128 + 224 + 320 + 416) / 4 / 512, 4), 0.0)
    assert deepspeed.kept((128, 512, 4, 1), 8) == (round((128 + 224 + 320 + 416) / 4 / 512, 4), 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train_batch_size": CONFIG_BATCH_SIZE}', r"is not JSON: .*If it is a template, fill in its values first"),
        ("[1]", r"holds a list: expected a config with named values"),
        ('{"learning_rate": 1}', r"not a config that can be converted \(its keys: learning_rate\)"),
        ('{"train_batch_size": 100, "train_micro_batch_size_per_gpu": 16}', r"not a multiple of 16 examples on 4 dev"),
        ('{"optimizer": 3}', r"optimizer=3: expected a group of settings"),
        (
            '{"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"betas": 0.9}}}',
            r"betas=0\.9: expected two numbers",
        ),
        ('{"bert_model_config": {}, "mixed_seq_training": {}}', r"mixed_seq_training is empty"),
    ],
)
def test_files_that_cannot_be_converted_are_refused(tmp_path, text, message):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(BadInput, match=message):
        convert.convert([tmp_path / "ds.json"], devices=4)


def test_decoders_and_mixed_projects_and_existing_outputs_are_refused(tmp_path):
    content = json.loads((FOLDER / "random_ltd.json").read_text())
    content["data_efficiency"]["data_routing"]["random_ltd"]["model_type"] = "decoder"
    (tmp_path / "gpt.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="model_type=decoder: only encoders"):
        convert.convert([tmp_path / "gpt.json"])
    with pytest.raises(BadInput, match="belong to different projects"):
        convert.convert([FOLDER / "pld.json", FOLDER / "token_drop_packed.yaml"])
    done = command(tmp_path / "gpt.json", "pld.json")
    assert done.returncode == 2
    assert "expected the name of a new file that ends in .py" in done.stderr
    assert bert_fast("convert").returncode == 2
    done = command(tmp_path / "mine.py", "pld.json", "--base=squad")
    assert "--base=squad is a fine-tuning config" in done.stderr


def test_a_result_that_pretrain_would_refuse_is_reported(tmp_path):
    content = yaml.safe_dump({"task": {"model": {"encoder": {"type": "any", "any": {"token_keep_k": 64}}}}})
    (tmp_path / "td.yaml").write_text(content)
    done = command(tmp_path / "mine.py", str(tmp_path / "td.yaml"))
    assert done.returncode == 2
    assert "was written, but `pretrain` refuses it: --config.token_drop.keep=0.125 keeps 64 of 512" in done.stderr


def test_text_after_a_line_break_in_a_foreign_file_does_not_become_code():
    found = conversion.Conversion(["x.yaml"])
    found.set("steps", 5, "type of x\n    raise SystemExit")
    text = conversion.source_of(found, {"steps": 1}, "bert", "mine.py")
    assert "    config.steps = 5  # type of x raise SystemExit\n" in text


@pytest.mark.parametrize(
    ("file", "content", "method"),
    [
        ("ds.json", {"train_batch_size": 8, "progressive_layer_drop": {"enabled": True, "theta": 0.5}}, "layer_drop"),
        ("mg.yaml", {"task": {"model": {"encoder": {"type": "any", "any": {"token_keep_k": 64}}},
                              "train_data": {"seq_length": 128, "max_predictions_per_seq": 20}}}, "token_drop"),
    ],
)  # fmt: skip
def test_method_is_used_with_any_base(tmp_path, file, content, method):
    (tmp_path / file).write_text(yaml.safe_dump(content) if file.endswith("yaml") else json.dumps(content))
    done = command(tmp_path / "mine.py", str(tmp_path / file), "--base=bert:size=mini,norm=pre", "--steps=1000")
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in made(tmp_path / "mine.py")[0].methods] == [method]


def test_later_file_may_empty_a_group():
    assert convert.merged({"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": None}, "e": {"f": 4}}) == {
        "a": {"b": 1, "c": None}, "e": {"f": 4},
    }  # fmt: skip
