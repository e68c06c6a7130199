"""The command line: `bert-fast COMMAND --help`, or `python -m bert_fast COMMAND --help`."""

import difflib
import errno
import os
import shlex
import sys
import threading
import warnings

from absl import flags

from bert_fast import BadInput, Interrupted, __version__, command, commands

# Remedies for errors about a path, if the command itself did not handle the error. Any other OSError is raised again,
# with its traceback.
REMEDIES = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "correct the symbolic links, or give another path",
    errno.EACCES: "get permission to use it (chmod), or give another path",
    errno.EROFS: "give a path on a writable file system",
}


def usage() -> str:
    lines = [f"  {name:<10} {module.WHAT}" for name, module in commands.known().items()]
    return "\n".join(
        [f"usage: {command()} COMMAND [--name=value ...]", "", *lines, "", "COMMAND --help lists its options."]
    )


def help_of(name: str, args: flags.FlagValues) -> str:
    module = commands.known()[name]
    lines = [f"{name}: {module.WHAT}", ""]
    for flag_name in sorted(args, key=lambda key: (commands.REQUIRED not in (args[key].help or ""), key)):
        flag = args[flag_name]
        default = "" if flag.default in (None, "") else f" [{flag.default}]"
        lines.append(f"  --{flag_name:<16} {flag.help}{default}")
    return "\n".join([*lines, "", f"example: {command()} {name} {module.EXAMPLE}"])


def parse(args: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses `argv` into `args`. Returns the arguments that are not options. Raises BadInput with the actual cause."""
    try:
        texts = args(argv)[1:]
        for name in ("config", "compare"):
            if name in args and (config := args[name].value) is not None:
                config.lock()
                unused_setting(name, config, argv)
        commands.refuse_urls(argv[0], args, texts)
        return texts
    except ImportError as error:
        raise BadInput(
            f"the config cannot import {error.name}: install it, or correct the import. The shipped configs are in "
            "bert_fast.configs"
        ) from None
    except (AttributeError, KeyError) as error:
        raise BadInput(unknown_key(argv, error)) from None
    except flags.UnrecognizedFlagError as error:
        raise BadInput(unknown_flag(error, args)) from None
    except flags.Error as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BadInput):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        if "config" in args:
            from bert_fast.commands import config_flag

            if reason := config_flag.explain(error, args):
                raise BadInput(reason) from None
        raise


def unused_setting(flag: str, config, argv: list[str]):
    """Raises BadInput for a changed setting of a method that the config does not use."""
    from bert_fast import methods
    from bert_fast.train import settings

    known, used = methods.known(), settings.names_in(config.get("methods", ""))
    for arg in argv:
        key = arg.lstrip("-").partition("=")[0]
        method = key.removeprefix(f"{flag}.").partition(".")[0]
        if key.startswith(f"{flag}.") and method in known and method not in used:
            there = f" (now {','.join(used)})" if used else ""
            raise BadInput(
                f"--{key} has no effect without the method {method}: add it to --{flag}.methods{there}, or omit --{key}"
            )


def unknown_key(argv: list[str], error: Exception) -> str:
    """The error message for an unknown config key. For a renamed key, it gives the new name."""
    from bert_fast.train import settings

    given = [arg.lstrip("-").split("=")[0] for arg in argv if arg.startswith(("--config.", "--compare."))]
    for old, new in settings.renamed().items():
        for name in given:
            if name.partition(".")[2] == old:
                return f"--{name} was renamed to --{name.partition('.')[0]}.{new}"
    reason = str(error).strip("\"'").replace("\\'", "'").replace("\\n", ". ").replace("'", "", 2)
    listed = ", ".join(f"--{name}" for name in given)
    return f"unknown config key {reason} (given: {listed}); the config.json of any run lists all keys"


def unknown_flag(error: flags.UnrecognizedFlagError, args: flags.FlagValues) -> str:
    """The error message for an unknown flag, with the most similar flag or config key."""
    names = {name: [f"--{name}"] for name in args}
    if "config" in args and args["config"].value is not None:
        from bert_fast.train import settings

        for key in settings.flat(args["config"].value.to_dict()):
            for name in {key, f"config.{key}", key.rpartition(".")[2]}:
                names.setdefault(name, []).append(f"--config.{key}")
    near = [error.flagname] if error.flagname in names else difflib.get_close_matches(error.flagname, names, 1)
    hint = f": did you mean {' or '.join(names[near[0]])}?" if near else "; --help lists the flags"
    return f"unknown flag --{error.flagname}{hint}"


def warn(message, category, filename, lineno, file=None, line=None):
    """Prints a warning without the line of code that raised it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Runs a command, and returns its exit code.

    0: success. 1: the run does not fit (`plan`), a check failed (`doctor`), or a run failed (`compare`). 2: bad input.
    3: training diverged. 4: the watchdog ended a process that waited too long. 5: a step was computed twice,
    with different results. 6: another process failed or was lost. 128 + N: stopped by signal N.
    """
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"bert_fast {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    known = commands.known()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or list(known)
        print(f"error: unknown command {name!r}: did you mean {' or '.join(near)}?\n\n{usage()}", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # so that configs can import files of the current folder
    args, warnings.showwarning = flags.FlagValues(), warn
    try:
        rest = commands.with_config_files(rest)
        known[name].define(args, [name, *rest])
        if "--help" in rest or "-h" in rest:
            print(help_of(name, args))
            return 0
        texts = parse(args, [name, *rest])
        return known[name].run(args, texts)
    except Interrupted as interrupted:
        print(f"\n{interrupted}. To continue:\n  {command()} {shlex.join(argv)}", file=sys.stderr)
        return interrupted.exit_code
    except (BadInput, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except OSError as error:
        if error.errno not in REMEDIES or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}: {REMEDIES[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from what was saved", file=sys.stderr)
        return 130


def console() -> int:
    """The entry point of `bert-fast`."""
    code = main(sys.argv[1:])
    if code > 128 and any(thread.name.startswith("compile") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python would first wait for the end of a compilation
    return code


if __name__ == "__main__":
    sys.exit(console())
