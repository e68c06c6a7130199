"""The command `report`."""

from absl import flags

WHAT = "write a page about runs, or about a comparison: losses, plans, methods, time, scores"
EXAMPLE = "runs/first runs/second --out=report.html"


def define(args, argv: list[str]):
    del argv
    flags.DEFINE_string(
        "out",
        "",
        "A folder for report.html, report.md and report.png, or one file that ends in .html, .md or .png. "
        "[the folder of the comparison or of the only run, else the current folder]",
        flag_values=args,
    )


def run(args, texts: list[str]) -> int:
    from bert_fast.reporting import write

    for path in write(texts, args.out):
        print(path)
    return 0
