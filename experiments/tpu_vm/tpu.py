"""One Cloud TPU: reads its state, creates and deletes it, and runs commands on its workers."""

import enum
import pathlib
import shlex
import sys

from bert_fast import BadInput
from experiments.tpu_vm.gcloud import Gcloud, NotFound
from experiments.tpu_vm.task import Task

FOLDER = "bert_fast_vm"  # on each worker, in the home folder
SCRIPT = pathlib.Path(__file__).with_name("vm.sh")
LOCAL = "~/.cache/bert_fast/tpu_vm"  # on this machine; holds the files that are copied to the workers


class Kind(enum.Enum):
    """What a state means for a run."""

    ABSENT = "there is no such TPU"
    WAITING = "not ready yet"
    READY = "ready"
    GONE = "lost its machines: it has to be deleted and made again"
    FAILED = "the request failed"


# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#state. Any other state: not ready yet.
NODE: dict[str, Kind] = {"READY": Kind.READY}
NODE.update(dict.fromkeys(("PREEMPTED", "TERMINATED", "STOPPING", "STOPPED", "HIDING", "HIDDEN"), Kind.GONE))
# https://cloud.google.com/tpu/docs/queued-resources. Any other state: not ready yet.
QUEUE = {"SUSPENDED": Kind.GONE, "FAILED": Kind.FAILED}  # if the request is ACTIVE, the state of its node decides


class Tpu:
    """The TPU of a task."""

    def __init__(self, task: Task, gcloud: Gcloud):
        self.task, self.gcloud = task, gcloud
        self.where = [f"--project={task.project}", f"--zone={task.zone}"]

    def state(self) -> tuple[Kind, str]:
        """What the TPU's state means, and Cloud TPU's own word for it."""
        if self.task.queued:
            word = self._described("queued-resources", "value(state.state)")
            if word != "ACTIVE":
                return QUEUE.get(word, Kind.WAITING) if word else Kind.ABSENT, word or "absent"
        word = self._described("tpu-vm", "value(state)")
        if not word:  # if a request is active but has no node, its node was lost
            return (Kind.GONE, "node absent") if self.task.queued else (Kind.ABSENT, "absent")
        return NODE.get(word, Kind.WAITING), word

    def _described(self, group: str, form: str) -> str:
        try:
            return self._tpus(group, "describe", self.task.name, f"--format={form}").strip()
        except NotFound:
            return ""

    def create(self):
        """Requests the TPU. Without a queue, waits until it is ready. Raises NoCapacity, or BadInput."""
        task = self.task
        if task.queued:
            flags = [f"--node-id={task.name}", f"--runtime-version={task.runtime}"]
        else:
            flags = [f"--version={task.runtime}"]
        group = "queued-resources" if task.queued else "tpu-vm"
        spot = ["--spot"] if task.spot else []
        self._tpus(group, "create", task.name, *flags, f"--accelerator-type={task.type}", *spot)

    def delete(self):
        """Deletes the TPU, and its request."""
        group, force = ("queued-resources", ["--force"]) if self.task.queued else ("tpu-vm", [])
        self._tpus(group, "delete", self.task.name, *force, "--quiet")

    def setup(self):
        """Copies the package and vm.sh to every worker, then installs the package and copies the shards there."""
        task, folder = self.task, pathlib.Path(LOCAL).expanduser() / self.task.name / FOLDER
        package = task.package
        self.gcloud(["rm", "-rf", str(folder)])
        self.gcloud(["mkdir", "-p", str(folder)])
        self.gcloud(["cp", str(SCRIPT), str(folder)])
        if task.is_local:
            source = str(pathlib.Path(package).expanduser())
            package = "wheel"
            self.gcloud([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", f"--wheel-dir={folder}", source])
        self.on("all", f"rm -f {FOLDER}/*.whl")  # a wheel of another version
        self._tpus("tpu-vm", "scp", "--quiet", "--recurse", str(folder), f"{task.name}:", "--worker=all")
        self.script("all", "setup", package, task.shards)

    def start(self):
        """Copies the run folder from the bucket unless the TPU has one, then starts the run on every worker."""
        task = self.task
        self.script("0", "restore", task.kept)
        self.script("all", "start", task.kept, str(task.sync_seconds), *task.args)

    def stop(self, seconds: int):
        """Lets the run save itself on every worker; after `seconds`, kills it."""
        self.script("all", "stop", str(seconds))

    def run_state(self) -> str:
        """State of the run: new (no vm.sh yet), idle, running ..., or ended CODE."""
        return self.on("0", f"if [ -f {FOLDER}/vm.sh ]; then bash {FOLDER}/vm.sh status; else echo new; fi").strip()

    def script(self, worker: str, *words: str, shown: bool = False) -> str:
        """Runs vm.sh on a worker, given by its number, or on all of them (`worker` is "all")."""
        return self.on(worker, f"bash {FOLDER}/vm.sh {shlex.join(words)}", shown)

    def on(self, worker: str, command: str, shown: bool = False) -> str:
        """Runs a command on a worker, or on all of them. Returns what the command printed."""
        return self._tpus(
            "tpu-vm", "ssh", self.task.name, "--quiet", f"--worker={worker}", f"--command={command}", shown=shown
        )

    def fetch(self, to: str):
        """Copies the run folder from the bucket."""
        self.gcloud(["mkdir", "-p", to])
        try:
            self.gcloud(["gcloud", "storage", "rsync", "--recursive", self.task.kept, to])
        except NotFound:
            raise BadInput(
                f"{self.task.kept} holds no run yet: the first copy is made {self.task.sync_seconds} s after `run`"
            ) from None

    def _tpus(self, group: str, verb: str, *words: str, shown: bool = False) -> str:
        *head, last = words
        command = ["gcloud", "compute", "tpus", group, verb, *head, *self.where]
        # The remote command comes last, where a reader looks for it.
        return self.gcloud([*command, last], shown)
