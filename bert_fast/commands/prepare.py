"""The command `prepare`: text to shards and a vocabulary."""

from absl import flags

from bert_fast.commands import REQUIRED, needs, nothing

WHAT = "text to shards and a vocabulary"
EXAMPLE = '--source="files:corpus/*.txt.gz" --out=shards'


def define(args, argv: list[str]):
    flags.DEFINE_string(
        "source", None, "Text: docs, files:GLOB or tfds:NAME[/CONFIG]:SPLIT. " + REQUIRED, flag_values=args
    )
    flags.DEFINE_string("out", None, "The shards folder that is made. " + REQUIRED, flag_values=args)
    flags.DEFINE_string("vocab", None, "An existing vocab.txt; without it one is trained.", flag_values=args)
    flags.DEFINE_integer("vocab_size", 30_522, "Word pieces of a vocabulary that is trained.", flag_values=args)
    flags.DEFINE_bool("cased", False, "Keep upper case.", flag_values=args)
    flags.DEFINE_bool(
        "strip_accents", None, "Strip accents; as BERT does, exactly where case is dropped.", flag_values=args
    )
    flags.DEFINE_float("valid_fraction", 0.01, "Share of documents that are held out, by a hash.", flag_values=args)
    flags.DEFINE_string(
        "text_key", "text", "Field of a .jsonl, .parquet or tfds record with the text.", flag_values=args
    )
    flags.DEFINE_string("tfds_data_dir", None, "Where tensorflow-datasets keeps its data.", flag_values=args)
    flags.DEFINE_bool("skip_bad", False, "Count and skip documents that cannot be read.", flag_values=args)
    flags.DEFINE_integer("processes", None, "Processes; by default one a core.", flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.data.prepare import prepare

    nothing(texts)
    needs(args, "source", "out")
    given = ("vocab", "vocab_size", "cased", "strip_accents", "valid_fraction", "text_key", "tfds_data_dir")
    prepare(args.source, args.out, **{name: args[name].value for name in (*given, "skip_bad", "processes")})
    return 0
