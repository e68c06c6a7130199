"""Every config makes valid settings at every size, and `debug` shrinks it to a run that takes seconds."""

import pytest

from bert_fast import BadInput, methods
from bert_fast.configs import common
from bert_fast.tasks import settings as finetune_settings
from bert_fast.train import settings, timeline
from helpers.config_files import CONFIGS, FILES, FINETUNE, VOCAB, get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", list(common.SIZES))
def test_config_makes_settings_at_every_size(path, size):
    config = get_config(path)(f"size={size}").to_dict()
    made = settings.make(config, VOCAB, tuple(methods.known()))
    depth, width, heads = common.SIZES[size]
    assert (made.model.depth, made.model.width, made.model.heads) == (depth, width, heads)
    assert made.model.mlp_dim == 4 * width == 4 * made.model.heads * made.model.head_size
    assert sum(phase.share for phase in made.phases) == pytest.approx(1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_debug_shrinks_a_config(path):
    made = settings.make(get_config(path)("size=large,debug").to_dict(), VOCAB, tuple(methods.known()))
    assert made.steps <= 50
    assert made.model.width <= 64
    assert timeline.stages(made, methods.make(made.methods))  # raises if a method refuses the timeline


def test_debug_says_once_what_became_of_the_size(capsys):
    common.say_once.cache_clear()
    for _ in range(2):
        get_config(next(path for path in CONFIGS if path.stem == "bert"))("size=mini,debug")
    said = capsys.readouterr().err
    became = "2 layers of width 32 in place of 4 of width 256, and 20 steps of 8 x 32 tokens"
    assert said == f"debug: {became}; flags can change them\n"


COMBINED = next(path for path in CONFIGS if path.stem == "combined")


@pytest.mark.parametrize(
    ("path", "argument", "most"),
    [*((path, "size=large", 3) for path in CONFIGS), (COMBINED, "all", 8)],
    ids=lambda value: getattr(value, "stem", str(value)),
)
def test_debug_run_has_few_and_small_programs(path, argument, most):
    # Compiling takes nearly all of a first debug run. With all four methods, each span of the plan runs a varying
    # number of layers, and each combination of these numbers is a program.
    made = settings.make(get_config(path)(f"{argument},debug").to_dict(), VOCAB, tuple(methods.known()))
    method = methods.make(made.methods)
    stages, found = timeline.stages(made, method), set()
    for index, stage in enumerate(stages):
        for clock in timeline.clocks(stages, index, stage.steps):
            program, _, _ = timeline.drawn(method, stage, clock, timeline.rng_of(made.seed, clock.step))
            found.add((stage.name, program))
    assert len(found) <= most
    assert max(program.model.depth for _, program in found) == 2
    assert {program.seq_len for _, program in found} == {32}


def test_baseline_is_the_published_recipe_of_bert():
    config = get_config(next(path for path in CONFIGS if path.stem == "bert"))()
    assert (config.steps, config.batch_size, config.phases) == (1_000_000, 256, "128:0.9,512:0.1")
    assert (config.learning_rate.peak, config.learning_rate.warmup_steps) == (1e-4, 0.01)
    assert config.data.objective == "mlm+nsp"
    assert not config.optimizer.bias_correction


def test_late_growth_grows_once_to_every_layer_after_its_share_of_the_steps():
    of_file = get_config(next(path for path in CONFIGS if path.stem == "late_growth"))
    for text, share in (("size=base", 0.7), ("size=large,share=0.8", 0.8)):
        made = settings.make(of_file(text).to_dict(), VOCAB, tuple(methods.known()))
        stages = [stage for stage in timeline.stages(made, methods.make(made.methods)) if stage.steps]
        ends = {stage.program.model.depth: 0 for stage in stages}
        for stage in stages:
            ends[stage.program.model.depth] += stage.steps
        assert ends == {1: round(share * made.steps), made.model.depth: made.steps - round(share * made.steps)}
    with pytest.raises(BadInput, match=r"share=1.2: expected a share of the steps between 0 and 1"):
        of_file("share=1.2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=bas", "did you mean base"),
        ("sise=base", "did you mean size"),
        ("seq=long", "expected a value of type int"),
        ("debug=yes", "debug=true"),
    ],
)
def test_error_about_a_bad_argument_says_what_is_expected(text, message):
    with pytest.raises(BadInput, match=message):
        get_config(next(path for path in CONFIGS if path.stem == "bert"))(text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("argument", ["size=mini", "seq=64", "objective=mlm_packed", "norm=pre", "norm=post", "debug"])
def test_every_config_takes_the_same_arguments_or_says_why_not(path, argument):
    name, _, value = argument.partition("=")
    try:
        config = get_config(path)(argument)
    except BadInput as error:
        assert str(error).startswith(f"config argument '{argument}': this config fixes {name}: ")  # noqa: PT017
        assert f"{name} is fixed" in " ".join(path.read_text().split())  # its docstring says so too
        return
    found = {"size": config.model.depth, "seq": config.phases, "objective": config.data.objective}
    found |= {"norm": config.model.norm, "debug": config.model.width}
    expected = {"size=mini": 4, "seq=64": "64:1", "debug": 32}
    assert found[name] == expected.get(argument, value)
    assert config.eval.seq_len <= max(phase.seq_len for phase in settings.phases(config.phases))


@pytest.mark.parametrize("name", FINETUNE)
@pytest.mark.parametrize("argument", ["size=mini", "objective=mlm", "norm=pre"])
def test_fine_tuning_config_refuses_arguments_that_the_checkpoint_decides(name, argument):
    with pytest.raises(BadInput, match=r"this config fixes .*: the model is the checkpoint's"):
        get_config(next(path for path in FILES if path.stem == name))(argument)


def test_every_argument_of_a_method_can_be_set_by_a_flag():
    # A ConfigDict has its own attributes, such as `update`, which hide a key of the same name.
    config = common.base("tiny")
    for name, arguments in methods.defaults().items():
        for key, default in arguments.items():
            assert getattr(config[name], key) == default
            assert type(default) in (str, int, float, bool)


@pytest.mark.parametrize("name", FINETUNE)
@pytest.mark.parametrize("recipe", ["bert", "early_bert"])
def test_fine_tuning_config_makes_settings(name, recipe):
    config = get_config(next(path for path in FILES if path.stem == name))(f"recipe={recipe}")
    config.data.dir = "somewhere"
    config.own.train = "train.csv"
    made = finetune_settings.make(config.to_dict())
    assert (made.batch_size, made.epochs) == {
        ("glue", "bert"): (32, 3),  # Devlin et al. 2019, section 4.1
        ("squad", "bert"): (32, 3),  # section 4.2
        ("own", "bert"): (32, 3),
        ("glue", "early_bert"): (128, 2),  # launch_earlybert_glue.sh
        ("own", "early_bert"): (128, 2),
        ("squad", "early_bert"): (48, 3),
    }[name, recipe]
    assert made.optimizer.eps_before_correction == (recipe == "early_bert")  # transformers 2.11, optimization.py
    assert [method for method, _ in made.methods] == ([] if recipe == "bert" else ["early_bert"])
    # In the released code, trainer.py (GLUE) records coefficients before the update, and run_squad_earlybert_search.py
    # after it.
    for _, arguments in made.methods:
        assert arguments["draw_before_update"] == (name != "squad")
    assert finetune_settings.make({**config.to_dict(), "epochs": 1.0}).epochs == 1


def test_layer_drop_recipe_of_fine_tuning_has_the_released_optimizer_settings():
    # BingBertGlue of DeepSpeedExamples: the groups in run_glue_classifier_bert_base.py and the defaults of `FusedAdam`.
    config = get_config(next(path for path in FILES if path.stem == "glue"))("recipe=layer_drop")
    config.data.dir = "somewhere"
    found = finetune_settings.make(config.to_dict()).optimizer
    assert (found.weight_decay, found.eps, found.bias_correction) == (0.01, 1e-8, False)
