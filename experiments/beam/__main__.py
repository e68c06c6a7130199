"""Prepares text on a cluster, with Apache Beam. The shards equal those of `bert-fast prepare`, byte for byte.

    python -m experiments.beam --source="files:corpus/*.txt.gz" --vocab=vocab.txt --out=shards -- [FLAG OF BEAM ...]

Workers read and tokenise files, and write units of the shards folder (bert_fast/data/staging.py). `prepare` then
finishes the folder on this machine. Run the command in a clone of the project, in an environment with
experiments/beam/requirements.txt. docs/cluster_prepare.md shows every step.
"""

import argparse
import importlib.util
import pathlib
import sys

from bert_fast import BadInput
from bert_fast.data import letters, staging
from bert_fast.data import vocab as vocabulary
from bert_fast.data.files import check_output, full_disk_reported
from bert_fast.data.mixture import Mixture
from bert_fast.data.prepare import UNIT, prepare, settings_of
from bert_fast.data.prepare_report import say_warning


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m experiments.beam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    truth = argparse.BooleanOptionalAction
    parser.add_argument("--source", required=True, help="files:GLOB, on this machine or in a bucket: files:gs://...")
    parser.add_argument("--vocab", required=True, help="a vocab.txt on this machine")
    parser.add_argument("--out", required=True, help="the shards folder to create, on this machine")
    parser.add_argument("--units", help="a new folder in a bucket for the workers' output, if the source is in one")
    parser.add_argument("--cased", action=truth, help="keep upper case (default: as in the vocabulary)")
    parser.add_argument("--strip_accents", action=truth, help="strip accents (default: as in the vocabulary)")
    parser.add_argument("--valid_fraction", type=float, default=0.01, help="share of documents to hold out (0.01)")
    parser.add_argument("--text_key", default="text", help="the field of a record that holds the text (text)")
    parser.add_argument("--skip_bad", action="store_true", help="skip documents that cannot be read, and count them")
    parser.add_argument(
        "--unit", type=int, default=UNIT, help="characters of text in a shard (as `prepare`: %(default)s)"
    )
    parser.add_argument("options", nargs="*", metavar="-- FLAG OF BEAM", help="such as --runner=DataflowRunner")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that cannot be used."""
    kind, _, pattern = args.source.partition(":")
    if kind != "files" or not pattern:
        raise BadInput(
            f"--source={args.source}: expected files:GLOB, on this machine or in a bucket (files:gs://BUCKET/*.txt.gz)"
        )
    if ("://" in pattern) != bool(args.units) or (args.units and "://" not in args.units):
        raise BadInput(
            f"--source={args.source} and --units={args.units or ''}: expected both in a bucket that all workers reach "
            "(--units=gs://BUCKET/units), or the source on this machine and no --units"
        )
    if not pathlib.Path(args.vocab).is_file():
        raise BadInput(
            f"--vocab={args.vocab} is not a file: expected a vocab.txt; `bert-fast prepare` on part of the text trains one"
        )
    if not 0 < args.valid_fraction < 1:
        raise BadInput(f"--valid_fraction={args.valid_fraction}: expected a share between 0 and 1, such as 0.01")
    if args.unit < 1:
        raise BadInput(f"--unit={args.unit}: expected at least 1 character")
    check_output(pathlib.Path(args.out), "--out")
    if (pathlib.Path(args.out) / "manifest.json").is_file():
        raise BadInput(f"--out={args.out} is already finished: choose another folder, or delete it")
    if not importlib.util.find_spec("apache_beam"):
        raise BadInput(
            "apache-beam is not installed: make a separate environment, and in it run "
            "pip install -r experiments/beam/requirements.txt"
        )


def run(args: argparse.Namespace) -> dict:
    """Makes the shards folder, and returns its manifest. Raises BadInput as `prepare` does."""
    check(args)
    from experiments.beam import pipeline

    out, vocab = pathlib.Path(args.out), pathlib.Path(args.vocab)
    chosen, warnings = letters.settle(args.cased, args.strip_accents, vocab, None)
    words = vocabulary.load(vocab, chosen.cased, chosen.strip_accents)
    mixture = Mixture([pipeline.open_corpus(args.source.partition(":")[2], args.text_key)])
    if args.units and (there := pipeline.listed(f"{args.units}/*")):
        raise BadInput(f"--units={args.units} holds {there[0][0]}: expected a new folder; choose another, or delete it")
    print(
        f"Source      {mixture.spec}: {len(mixture.sources[0].parts)} file(s)\nLetters     {chosen} ({chosen.by})",
        flush=True,
    )
    for warning in warnings:
        say_warning(warning)
    settings = settings_of(
        mixture, chosen, words.fingerprint, args.text_key, args.valid_fraction, args.skip_bad, args.unit
    )
    with full_disk_reported(out), staging.claimed(out, settings, mixture.stamps_K()) as folder:
        pipeline.run(
            mixture.sources[0], words, args.units or str(folder.absolute()), text_key=args.text_key,
            skip_bad=args.skip_bad, valid_fraction=args.valid_fraction, unit=args.unit, options=args.options,
        )  # fmt: skip
        if args.units:
            pipeline.fetch(args.units, folder)
    return prepare(
        mixture, out, vocab=vocab, cased=args.cased, strip_accents=args.strip_accents, text_key=args.text_key,
        valid_fraction=args.valid_fraction, skip_bad=args.skip_bad, processes=1, unit=args.unit,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the command, and returns its exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    args = parse(argv)
    try:
        run(args)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # Beam turns a KeyboardInterrupt inside of a step into a RuntimeError with this text.
        if isinstance(error, RuntimeError) and not str(error).startswith("KeyboardInterrupt"):
            raise
        print(
            "\nstopped here. A job on a cluster continues. To start over, use the same command; if it has --units, "
            "give a new folder",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
