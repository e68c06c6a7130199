"""The command `convert`."""

import pathlib

from absl import flags

from bert_fast import BadInput, command
from bert_fast.commands import needs

WHAT = "turn a config of DeepSpeed or TensorFlow Model Garden into a config of this package"
EXAMPLE = "--out=mine.py deepspeed_config.json bert_base.json"


def define(args, argv: list[str]):
    flags.DEFINE_string("out", "converted.py", "The config file to write.", flag_values=args)
    flags.DEFINE_string(
        "base", None, "The shipped config to start from, such as bert:size=large,norm=pre.", flag_values=args
    )
    flags.DEFINE_integer(
        "steps", 0, "Number of steps of the run, if it is not in the files; 0: unknown.", 0, flag_values=args
    )
    flags.DEFINE_integer("devices", 0, "Number of GPUs of the run, which is not in DeepSpeed's file; 0: unknown.", 0,
                         flag_values=args)  # fmt: skip


def run(args, texts: list[str]) -> int:
    from bert_fast import convert, methods
    from bert_fast.commands import config_flag
    from bert_fast.convert import conversion
    from bert_fast.planner import estimate
    from bert_fast.train import settings, timeline

    needs(args, "out")
    if not texts:
        raise BadInput(f"no files to convert: {command()} convert {EXAMPLE}")
    out = pathlib.Path(args.out)
    if out.suffix != ".py" or out.exists():
        raise BadInput(f"--out={out}: expected the name of a new file that ends in .py")
    found = convert.convert([pathlib.Path(text) for text in texts], args.steps, args.devices)
    spec = args.base or found.base
    base = settings.flat(config_flag.load(spec, {}).to_dict())
    if "steps" not in base:
        raise BadInput(f"--base={spec} is a fine-tuning config: expected one for pre-training, such as bert:size=large")
    found = conversion.typed(convert.finished(found, base), base)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(conversion.source_of(found, base, spec, str(out)))
    print("\n".join(conversion.report(found, base, spec)))
    print(f"\nwritten: {out}. The same as flags:\n  {command()} pretrain {conversion.flags_of(found, base, spec)}")
    try:
        made = settings.make(config_flag.load(str(out), {}).to_dict(), estimate.BERT, tuple(methods.known()))
        timeline.stages(made, methods.make(made.methods))
    except BadInput as error:
        raise BadInput(f"{out} was written, but `pretrain` refuses it: {error}") from None
    return 0
