"""The command `prepare`."""

from absl import flags

from bert_fast.commands import REQUIRED, needs, nothing

WHAT = "turn text into shards and a vocabulary"
EXAMPLE = '--source="files:corpus/*.txt.gz" --out=shards'


def define(args, argv: list[str]):
    flags.DEFINE_string(
        "source", None, "Text: docs, files:GLOB or tfds:NAME[/CONFIG]:SPLIT. " + REQUIRED, flag_values=args
    )
    flags.DEFINE_string("out", None, "The shards folder to create. " + REQUIRED, flag_values=args)
    flags.DEFINE_string("vocab", None, "An existing vocab.txt. Without it, a vocabulary is trained.", flag_values=args)
    flags.DEFINE_integer("vocab_size", 30_522, "Size of a trained vocabulary, in word pieces.", flag_values=args)
    flags.DEFINE_bool("cased", False, "Keep upper case.", flag_values=args)
    flags.DEFINE_bool("strip_accents", None, "Strip accents [as BERT does: only if not --cased].", flag_values=args)
    flags.DEFINE_float("valid_fraction", 0.01, "Share of documents to hold out, chosen by a hash.", flag_values=args)
    flags.DEFINE_string(
        "text_key", "text", "The field of a .jsonl, .parquet or tfds record that holds the text.", flag_values=args
    )
    flags.DEFINE_string(
        "tfds_data_dir", None, "The folder in which tensorflow-datasets keeps its data.", flag_values=args
    )
    flags.DEFINE_bool("skip_bad", False, "Skip documents that cannot be read, and count them.", flag_values=args)
    flags.DEFINE_integer("processes", None, "Number of processes [one per core].", flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.data.prepare import prepare

    nothing(texts)
    needs(args, "source", "out")
    given = ("vocab", "vocab_size", "cased", "strip_accents", "valid_fraction", "text_key", "tfds_data_dir")
    prepare(args.source, args.out, **{name: args[name].value for name in (*given, "skip_bad", "processes")})
    return 0
