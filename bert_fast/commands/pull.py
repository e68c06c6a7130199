"""The command `pull`."""

from absl import flags

from bert_fast import BadInput, command
from bert_fast.commands import REQUIRED, needs

WHAT = "download a model from the Hugging Face Hub as a folder, to copy to a machine that cannot reach the Hub"
EXAMPLE = "google/bert_uncased_L-2_H-128_A-2 --out=bert-tiny"


def define(args, argv: list[str]):
    flags.DEFINE_string("out", None, "The Hugging Face folder to create. " + REQUIRED, flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.hf.pull import pull

    needs(args, "out")
    if len(texts) != 1:
        raise BadInput(f"expected one model (NAME or NAME@REVISION), got {len(texts)}. An example: {EXAMPLE}")
    done = pull(texts[0], args.out)
    files = [path.stat().st_size for path in done.folder.iterdir()]
    print(f"{done.folder}: {done.hub}, {len(files)} files, {sum(files) / 1e6:.1f} MB")
    print(f"try: {command()} import --hf={done.folder} --out=DIR")
    return 0
