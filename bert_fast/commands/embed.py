"""The command `embed`."""

import json
import pathlib
import sys

from absl import flags

from bert_fast import BadInput
from bert_fast.commands import begin_computing, checkpoint_flag, needs

WHAT = "turn texts into vectors"
EXAMPLE = '--checkpoint=runs/mini --out=vectors.npy "The first text." "The second."'


def define(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_string(
        "data",
        None,
        "A file with a text on each line, instead of texts as arguments. An empty line counts as a text.",
        flag_values=args,
    )
    flags.DEFINE_string("out", None, "A .npy file to write [JSON Lines on standard output].", flag_values=args)
    flags.DEFINE_string("pooling", "mean", "mean: averaged over tokens. cls: the state of [CLS].", flag_values=args)
    flags.DEFINE_integer("batch_size", 32, "Number of texts in a batch.", lower_bound=1, flag_values=args)


def run(args, texts: list[str]) -> int:
    needs(args, "checkpoint")
    if bool(args.data) == bool(texts):
        raise BadInput("give texts as arguments, or a file (--data=FILE) with a text on each line, but not both")
    if args.data:
        try:
            texts = pathlib.Path(args.data).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--data={args.data} cannot be read: {error}") from None
    out = pathlib.Path(args.out or "vectors.npy")
    if out.suffix != ".npy" or not out.parent.is_dir():
        raise BadInput(f"--out={out}: expected a .npy file in a folder that exists")

    import numpy as np

    from bert_fast import encoder, inference

    begin_computing()
    vectors_ND = inference.embed(encoder.load(args.checkpoint), texts, args.pooling, args.batch_size)
    if args.out:
        np.save(out, vectors_ND)
        print(f"{out}: {len(vectors_ND):,} vectors of {vectors_ND.shape[1]} values", file=sys.stderr)
    else:
        for text, vector_D in zip(texts, vectors_ND.tolist(), strict=True):
            print(json.dumps({"text": text, "vector": vector_D}, ensure_ascii=False))
    return 0
