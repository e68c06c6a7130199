"""The command `export`."""

from typing import Any

from absl import flags

from bert_fast.commands import REQUIRED, checkpoint_flag, needs, nothing

WHAT = "write a checkpoint as a Hugging Face folder, with tokenizer and model card"
EXAMPLE = "--checkpoint=runs/mini --out=mini-hf --verify"


def define(args, argv: list[str]):
    define_common(args)
    flags.DEFINE_string("out", None, "The Hugging Face folder to create. " + REQUIRED, flag_values=args)


def define_common(args):
    """Adds the flags that `push` also has."""
    checkpoint_flag(args)
    flags.DEFINE_bool(
        "verify",
        False,
        "Compare with transformers, and fail if a logit differs by more than 1e-4 (needs torch).",
        flag_values=args,
    )
    flags.DEFINE_bool(
        "initialised_heads", False, "Also write heads that the imported model did not have.", flag_values=args
    )
    flags.DEFINE_string("results", None, "A finetune folder with results.json, for the model card.", flag_values=args)
    flags.DEFINE_string("license", None, "For the model card: an identifier such as apache-2.0.", flag_values=args)
    flags.DEFINE_string("language", None, "For the model card: ISO 639 codes such as de,en.", flag_values=args)


def options(args) -> dict[str, Any]:
    """The arguments of `write.export` that the common flags set."""
    from bert_fast.hf import metadata

    given = metadata.stated(args.license or "", args.language or "")
    return {
        "compare": args.verify,
        "initialised_heads": args.initialised_heads,
        "results": args.results,
        "given": given,
    }


def run(args, texts: list[str]) -> int:
    from bert_fast.hf.write import export

    nothing(texts)
    needs(args, "checkpoint", "out")
    done = export(args.checkpoint, args.out, **options(args))
    print(f"{done.folder}: {done.class_name}")
    print_more(done)
    return 0


def print_more(done):
    """Prints the notes of an export, and the differences from transformers."""
    for note in done.notes:
        print(f"note: {note}")
    for name, difference in (done.differences or {}).items():
        print(f"largest difference from transformers, {name}: {difference:.1e}")
