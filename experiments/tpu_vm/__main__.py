"""Pre-trains on a Cloud TPU VM: one host or a slice, on demand, spot or queued. The guide is docs/cloud_tpu.md.

    python -m experiments.tpu_vm create  TASK.toml    makes the TPU, or asks for it in the queue
    python -m experiments.tpu_vm setup   TASK.toml    installs the package and copies the shards, on every worker
    python -m experiments.tpu_vm run     TASK.toml    starts the run on every worker, and watches it
    python -m experiments.tpu_vm status  TASK.toml    shows the state of the TPU and of the run
    python -m experiments.tpu_vm logs    TASK.toml    shows the run's output
    python -m experiments.tpu_vm resume  TASK.toml    does whichever of the first three steps remain, and watches
    python -m experiments.tpu_vm fetch   TASK.toml    copies the run folder from the bucket
    python -m experiments.tpu_vm delete  TASK.toml    saves the run, then deletes the TPU

`run` and `resume` watch until the run ends. If the TPU is preempted, they make it again, set it up, and resume the run
from the bucket. Ctrl-C ends the watching, not the run; `resume` watches again. --dry_run prints every command and runs
none. Run this program in a clone of the project. It needs Python 3.11 and gcloud. If bert_fast is installed too, the
flags of the run are checked on this machine before anything is made.
"""

import argparse
import sys

from bert_fast import BadInput
from experiments.tpu_vm import arguments
from experiments.tpu_vm import task as tasks
from experiments.tpu_vm.gcloud import DryRun, Gcloud, NoCapacity, NotFound
from experiments.tpu_vm.tpu import FOLDER, Kind, Tpu
from experiments.tpu_vm.watch import watch

# The state in which each command is usually given. A dry run assumes this state. WORDS describes the states.
ASSUMED = {"create": "", "resume": "", "setup": "new", "run": "idle"}
WORDS = {
    "": "there is no TPU yet",
    "new": "the TPU is new",
    "idle": "the TPU is set up",
    "ended 0": "the run has ended",
}
LEADING_TO_A_RUN = ("create", "setup", "run", "resume")  # these check the run's flags first


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m experiments.tpu_vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("create", "setup", "run", "status", "logs", "resume", "fetch", "delete"):
        command = commands.add_parser(name)
        command.add_argument("task", metavar="TASK.toml", help=f"the task, such as {tasks.example()}")
        command.add_argument("--dry_run", action="store_true", help="print every command, and run none")
        if name in ("run", "resume"):
            command.add_argument("--poll", type=float, default=60, help="seconds between checks (default 60)")
        if name == "run":
            command.add_argument("--detach", action="store_true", help="start the run, and do not watch it")
        if name == "logs":
            command.add_argument("--worker", default="0", help="number of the worker (default 0)")
            command.add_argument("--lines", type=int, default=50, help="number of lines (default 50)")
            command.add_argument("--follow", action="store_true", help="show new lines until Ctrl-C")
        if name == "fetch":
            command.add_argument("--to", help="folder to copy to (default runs/NAME)")
        if name == "delete":
            command.add_argument("--now", action="store_true", help="do not wait for the run to save itself")
    return parser.parse_args(argv)


def silent(line: str) -> None:
    """Stands in for `say` in a dry run, in which nothing happens that could be reported."""


def ready(tpu: Tpu) -> str:
    """The run's state. Raises BadInput if the TPU is not ready."""
    kind, word = tpu.state()
    if kind is not Kind.READY:
        first = {Kind.ABSENT: "`create` it first", Kind.WAITING: "look again later with `status`, or use `resume`"}
        raise BadInput(f"{tpu.task.name} is {word} ({kind.value}): {first.get(kind, '`resume` makes it again')}")
    return tpu.run_state()


def create(tpu: Tpu) -> str:
    kind, word = tpu.state()
    if kind is not Kind.ABSENT:
        raise BadInput(f"{tpu.task.name} exists already ({word}): use `resume`, `delete` it, or change the task's name")
    tpu.create()
    return f"{tpu.task.name}: requested; `status` shows the queue" if tpu.task.queued else f"{tpu.task.name}: ready"


def setup(tpu: Tpu) -> None:
    if ready(tpu).startswith("running"):
        raise BadInput(f"{tpu.task.name} is running: wait until the run ends, or `delete` and `resume`")
    tpu.setup()


def run(tpu: Tpu, args: argparse.Namespace) -> None:
    state = ready(tpu)
    if state == "new":
        raise BadInput(f"{tpu.task.name} is not set up: `setup` it first")
    if state.startswith("running"):
        raise BadInput(f"{tpu.task.name} is running already: `resume` watches it")
    tpu.start()
    if not args.detach:
        watch(tpu, args.poll, silent if args.dry_run else say)


def status(tpu: Tpu, args: argparse.Namespace) -> None:
    kind, word = tpu.state()
    run = f"\nrun: {tpu.run_state()}" if kind is Kind.READY else ""
    if not args.dry_run:  # a dry run prints commands only
        print(f"{tpu.task.name} ({tpu.task.type}, {tpu.task.zone}): {word}{run}")


def logs(tpu: Tpu, args: argparse.Namespace) -> None:
    if ready(tpu) == "new":
        raise BadInput(f"{tpu.task.name} is not set up, so there is no log yet")
    follow = " -F" if args.follow else ""
    tpu.on(args.worker, f"tail -n {args.lines}{follow} {FOLDER}/log.txt", shown=True)


def delete(tpu: Tpu, args: argparse.Namespace) -> str:
    kind, _ = tpu.state()
    if kind is Kind.ABSENT:
        raise BadInput(f"{tpu.task.name} does not exist in {tpu.task.zone}: there is nothing to delete")
    if kind is Kind.READY and not args.now and tpu.run_state() != "new":
        tpu.stop(600)
    tpu.delete()
    return f"{tpu.task.name}: deleted. The run stays in {tpu.task.kept}, and costs storage until you delete it there"


def main(argv: list[str]) -> int:
    """Runs a command. Returns its exit code: 0 for success, 2 for bad input or a failed command, 130 for Ctrl-C."""
    args = parse(argv)
    try:
        task = tasks.read(args.task)
        if args.command in LEADING_TO_A_RUN and (unchecked := arguments.check(task, args.task)):
            say(f"note: {unchecked}")
        gcloud = Gcloud(task.project, task.zone)
        if args.dry_run:
            state = ASSUMED.get(args.command, "ended 0")
            gcloud = DryRun(task.project, task.zone, state)
            say(f"dry run: nothing is run. If {WORDS[state]}, and each command works, `{args.command}` would run:")
        tpu, done = Tpu(task, gcloud), None
        if args.command == "resume":
            watch(tpu, args.poll, silent if args.dry_run else say)
        elif args.command == "fetch":
            tpu.fetch(args.to or f"runs/{task.name}")
        else:
            command = {"create": create, "setup": setup, "run": run, "status": status, "logs": logs, "delete": delete}
            more = () if args.command in ("create", "setup") else (args,)
            done = command[args.command](tpu, *more)
        if args.dry_run:
            say("dry run: nothing was run, made or deleted")
        elif done:
            say(done)
    except NoCapacity as error:
        say(f"error: no capacity for {task.type} in {task.zone} now:\n{error}\nSet queued = true, or try another zone")
        return 2
    except (BadInput, NotFound) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("\nstopped here. The run on the TPU continues: `status` shows it, and `resume` watches it again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
