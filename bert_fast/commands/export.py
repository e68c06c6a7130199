"""The command `export`."""

from absl import flags

from bert_fast.commands import REQUIRED, checkpoint_flag, needs, nothing

WHAT = "write a checkpoint as a Hugging Face folder, with tokenizer and model card"
EXAMPLE = "--checkpoint=runs/mini --out=mini-hf --verify"


def define(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_string("out", None, "The Hugging Face folder to create. " + REQUIRED, flag_values=args)
    flags.DEFINE_bool(
        "verify",
        False,
        "Compare with transformers, and fail if a logit differs by more than 1e-4 (needs torch).",
        flag_values=args,
    )
    flags.DEFINE_bool(
        "initialised_heads", False, "Also write the heads that an imported model lacked.", flag_values=args
    )
    flags.DEFINE_string("results", None, "A finetune folder with results.json, for the model card.", flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.hf.write import export

    nothing(texts)
    needs(args, "checkpoint", "out")
    done = export(args.checkpoint, args.out, args.verify, args.initialised_heads, args.results)
    print(f"{done.folder}: {done.class_name}")
    for note in done.notes:
        print(f"note: {note}")
    for name, difference in (done.differences or {}).items():
        print(f"largest difference from transformers, {name}: {difference:.1e}")
    return 0
