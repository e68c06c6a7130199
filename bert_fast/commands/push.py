"""The command `push`."""

from absl import flags

from bert_fast.commands import REQUIRED, export, needs, nothing

WHAT = "export a checkpoint and upload it to the Hugging Face Hub"
EXAMPLE = "--checkpoint=runs/mini --repo=ORG/NAME --license=apache-2.0 --language=en"


def define(args, argv: list[str]):
    export.define_common(args)
    flags.DEFINE_string(
        "repo",
        None,
        "The model on the Hub, ORG/NAME. It is created if it does not exist. " + REQUIRED,
        flag_values=args,
    )
    flags.DEFINE_bool("private", False, "If the model does not exist, create it as private.", flag_values=args)
    flags.DEFINE_string("revision", "main", "The branch. It is created if it does not exist.", flag_values=args)


def run(args, texts: list[str]) -> int:
    from bert_fast.hf.push import push

    nothing(texts)
    needs(args, "checkpoint", "repo")
    done = push(args.checkpoint, args.repo, args.private, args.revision, **export.options(args))
    print(f"{args.repo}: {done.export.class_name}, {'private' if done.private else 'public'}")
    export.print_more(done.export)
    if not args.license:
        print("note: the model card states no licence: give --license=apache-2.0 or another one")
    print(f"uploaded: {done.url}" if done.changed else "the Hub has the same files already: nothing was uploaded")
    return 0
