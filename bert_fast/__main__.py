"""The commands: `python -m bert_fast COMMAND --help`."""

import difflib
import os
import pathlib
import shlex
import sys
import warnings

from absl import flags

from bert_fast import BadInput, Interrupted, commands, python


def usage() -> str:
    lines = [f"  {name:<10} {command.WHAT}" for name, command in commands.known().items()]
    return "\n".join(
        ["usage: python -m bert_fast COMMAND [--name=value ...]", "", *lines, "", "COMMAND --help tells its options."]
    )


def help_of(name: str, args: flags.FlagValues) -> str:
    command = commands.known()[name]
    lines = [f"{name}: {command.WHAT}", ""]
    for flag_name in sorted(args, key=lambda key: (commands.REQUIRED not in (args[key].help or ""), key)):
        flag = args[flag_name]
        default = "" if flag.default in (None, "") else f" [{flag.default}]"
        lines.append(f"  --{flag_name:<16} {flag.help}{default}")
    return "\n".join([*lines, "", f"example: python -m bert_fast {name} {command.EXAMPLE}"])


def parse(args: flags.FlagValues, argv: list[str]) -> list[str]:
    """Fills `args`, and returns what is no option. Raises BadInput, where ml_collections buries the reason."""
    try:
        texts = args(argv)[1:]
        for name in ("config", "compare"):
            if name in args and (config := args[name].value) is not None:
                config.lock()
        return texts
    except (AttributeError, KeyError) as error:
        found = [arg.split("=")[0] for arg in argv if arg.startswith("--config.")]
        reason = str(error).strip("\"'").replace("\\'", "'").replace("\\n", ". ").replace("'", "", 2)
        raise BadInput(f"unknown config key {reason} (of {', '.join(found)}); config.json of a run lists all") from None
    except (OSError, flags.Error) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BadInput):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        if isinstance(error, OSError):
            there = sorted(
                str(path) for path in pathlib.Path("configs").glob("*.py") if not path.name.startswith(("_", "common"))
            )
            path = next((arg.split("=", 1)[1].split(":")[0] for arg in argv if arg.startswith("--config=")), "")
            raise BadInput(f"no config file {path!r} can be read: known are {', '.join(there) or 'none'}") from None
        raise


def warn(message, category, filename, lineno, file=None, line=None):
    """Shows a warning without the line of code that gave it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Runs a command; its exit code: 0, 2 for bad input, 130 and 143 after SIGINT and SIGTERM."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    known = commands.known()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or list(known)
        print(f"error: unknown command {name!r}: did you mean {' or '.join(near)}?\n\n{usage()}", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # configs import each other from the folder that the command runs in
    args, warnings.showwarning = flags.FlagValues(), warn
    try:
        known[name].define(args, argv)
        if "--help" in rest or "-h" in rest:
            print(help_of(name, args))
            return 0
        texts = parse(args, [name, *rest])
        return known[name].run(args, texts)
    except Interrupted as interrupted:
        command = shlex.join([python(), "-m", "bert_fast", *argv])
        print(f"\n{interrupted}. To continue:\n  {command}", file=sys.stderr)
        return interrupted.exit_code
    except (BadInput, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what was saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
