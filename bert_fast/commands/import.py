"""The command `import`."""

from absl import flags

from bert_fast.commands import REQUIRED, needs, nothing

WHAT = "turn a Hugging Face model, from a folder or the Hub, into a checkpoint"
EXAMPLE = "--hf=google/bert_uncased_L-2_H-128_A-2 --out=runs/tiny"


def define(args, argv: list[str]):
    flags.DEFINE_string(
        "hf",
        None,
        "A Hugging Face folder, or a model's NAME[@REVISION] on the Hub. Its model_type must be bert, megatron-bert or "
        "roberta-prelayernorm. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_string("out", None, "The run folder to create. The model is its step 0. " + REQUIRED, flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.hf import read

    nothing(texts)
    needs(args, "hf", "out")
    imported = read.read(args.hf)
    folder = read.save(imported, args.out)
    came = imported.about.imported or {}
    print(f"{folder}: {len(came['tensors'])} tensors from {came['folder']}")
    print(read.next_commands(imported, args.out))
    return 0
