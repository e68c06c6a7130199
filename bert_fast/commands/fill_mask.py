"""The command `fill-mask`."""

from absl import flags

from bert_fast import BadInput
from bert_fast.commands import begin_computing, checkpoint_flag, needs

WHAT = "find the most probable words for each [MASK]"
EXAMPLE = '--checkpoint=runs/mini "The capital of France is [MASK]."'


def define(args, argv: list[str]):
    checkpoint_flag(args)
    flags.DEFINE_integer("top", 5, "Number of words shown for each mask.", lower_bound=1, flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast import encoder
    from bert_fast.inference import fill_mask

    begin_computing()
    needs(args, "checkpoint")
    if not texts:
        raise BadInput('no text: give at least one, such as "The capital of France is [MASK]."')
    for text, masks in zip(texts, fill_mask(encoder.load(args.checkpoint), texts, args.top), strict=True):
        print(text)
        for number, words in enumerate(masks, 1):
            label = f"  [MASK] {number}: " if len(masks) > 1 else "  "
            print(label + "  ".join(f"{word} {share:.1%}" for word, share in words))
    return 0
