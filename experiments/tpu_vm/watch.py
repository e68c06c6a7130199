"""Keeps a run going until it ends: makes a lost TPU again, sets it up, and resumes the run from the bucket."""

import contextlib
import time
from collections.abc import Callable

from bert_fast import BadInput
from experiments.tpu_vm.gcloud import NoCapacity, NotFound
from experiments.tpu_vm.tpu import FOLDER, Kind, Tpu

RESTARTS = 3  # a run that fails for its own reasons, on a healthy TPU, is started again at most this many times
BAD_INPUT = 2  # exit code of bert-fast for settings that cannot be used: starting again would not help
Say = Callable[[str], None]


def watch(tpu: Tpu, poll: float, say: Say) -> None:
    """Returns when the run has finished. Raises BadInput if it cannot continue.

    poll: seconds between checks. If the first check fails, its error is raised. If a later check fails, it is repeated,
    because a watcher has to survive a network that is down for a while.
    """
    said, failures = "", 0
    look = _state(tpu)
    while True:
        kind, word, run = look
        line = f"{tpu.task.name}: {word}" + (f", run {run}" if run else "")
        if line != said:
            say(line)
            said = line
        if run == "ended 0":
            say(f"finished: the run is in {tpu.task.kept}")
            return
        if kind is Kind.FAILED:
            where = " ".join(tpu.where)
            raise BadInput(
                f"the request of {tpu.task.name} failed: `gcloud compute tpus queued-resources describe "
                f"{tpu.task.name} {where}` says why. Then `delete` it, and change the task"
            )
        if run.startswith("ended"):
            failures += 1
            _refuse_hopeless(tpu, run, failures)
            say(f"{tpu.task.name}: starting the run again ({failures} of {RESTARTS})")
        absent = kind in (Kind.GONE, Kind.ABSENT)
        if (absent or run in ("new", "idle") or run.startswith("ended")) and _mended(tpu, kind, run, say):
            look = _state(tpu)
            continue
        time.sleep(poll)
        try:
            look = _state(tpu)
        except BadInput as error:
            look = (Kind.WAITING, f"state unknown ({error})", "")


def _state(tpu: Tpu) -> tuple[Kind, str, str]:
    """What the TPU's state means, Cloud TPU's word for it, and the run's state ("" if the TPU is not ready)."""
    kind, word = tpu.state()
    if kind is not Kind.READY:
        return kind, word, ""
    try:
        return kind, word, tpu.run_state()
    except (BadInput, NotFound):  # while it is being preempted, a TPU is READY but refuses connections
        return kind, word, "unreachable"


def _mended(tpu: Tpu, kind: Kind, run: str, say: Say) -> bool:
    """Makes the TPU if there is none. Otherwise starts the run. Sets the TPU up first, unless the run has ended there.

    Returns False if this cannot be done now.
    """
    try:
        if kind is Kind.GONE:
            with contextlib.suppress(NotFound):  # deleted in the meantime
                tpu.delete()
        if kind in (Kind.GONE, Kind.ABSENT):
            tpu.create()
            return True
        if run.startswith("ended"):
            tpu.stop(60)  # on other workers, processes may still wait for the process that failed
        else:
            tpu.setup()
        tpu.start()
        return True
    except NoCapacity:
        say(f"{tpu.task.name}: no capacity in {tpu.task.zone} now, trying again")
    except (BadInput, NotFound) as error:
        if kind is not Kind.READY or tpu.state()[0] is Kind.READY:
            if isinstance(error, NotFound):
                raise BadInput(f"{error}: look at `shards`, `bucket` and `package` in the task") from None
            raise
        say(f"{tpu.task.name}: lost while it was being set up ({str(error).splitlines()[0]})")
    return False


def _refuse_hopeless(tpu: Tpu, run: str, failures: int) -> None:
    """Raises BadInput, with the end of the log, if starting the run again will not help."""
    if run == f"ended {BAD_INPUT}" or failures > RESTARTS:
        log = tpu.on("0", f"tail -n 20 {FOLDER}/log.txt")
        raise BadInput(f"the run {run}; this was failure {failures}. Its log ends with:\n{log}Fix that, then `run`")
