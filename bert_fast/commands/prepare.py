"""The command `prepare`."""

from absl import flags

from bert_fast.commands import REQUIRED, needs, nothing

WHAT = "turn text into shards and a vocabulary"
EXAMPLE = '--source="files:corpus/*.txt.gz" --out=shards'


def define(args, argv: list[str]):
    flags.DEFINE_multi_string(
        "source",
        None,
        "Text: docs, files:GLOB, hf:ORG/NAME[/CONFIG]:SPLIT[:COLUMN] or tfds:NAME[/CONFIG]:SPLIT. Several "
        "--source are read one after another. With weights, such as --source='0.7*files:a/*.txt', they are mixed: "
        "a weight is a source's share of the text. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_bool(
        "repeat",
        False,
        "In a mixture, repeat each source that runs out, until all have been read. Without this flag, the mixture ends "
        "when the first source runs out.",
        flag_values=args,
    )
    flags.DEFINE_string("out", None, "The shards folder to create. " + REQUIRED, flag_values=args)
    flags.DEFINE_string("vocab", None, "An existing vocab.txt. Without it, a vocabulary is trained.", flag_values=args)
    flags.DEFINE_integer("vocab_size", 30_522, "Size of a trained vocabulary, in word pieces.", flag_values=args)
    flags.DEFINE_bool("cased", None, "Keep upper case [as in --vocab, else False].", flag_values=args)
    flags.DEFINE_bool(
        "strip_accents",
        None,
        "Strip accents (für becomes fur, が becomes か) [as in --vocab, else False].",
        flag_values=args,
    )
    flags.DEFINE_float("valid_fraction", 0.01, "Share of documents to hold out, chosen by a hash.", flag_values=args)
    flags.DEFINE_string(
        "text_key", "text", "The field of a record that holds the text (.jsonl, .parquet, hf, tfds).", flag_values=args
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
    given = ("repeat", "vocab", "vocab_size", "cased", "strip_accents", "valid_fraction", "text_key", "tfds_data_dir")
    prepare(args.source, args.out, **{name: args[name].value for name in (*given, "skip_bad", "processes")})
    return 0
