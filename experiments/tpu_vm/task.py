"""A task: one TPU, the run on it, and where the run is kept. Every command takes a TOML file with a task."""

import dataclasses
import os
import pathlib
import re
import tomllib

from bert_fast import BadInput

# Types of TPU, and the software version that JAX needs on them: https://cloud.google.com/tpu/docs/runtimes. The number
# in a type counts chips for v5e and v6e, and cores (two per chip) for the others.
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
OURS = ("workdir", "config.data.dir", "distributed", "coordinator", "process_count", "process_index")


@dataclasses.dataclass(frozen=True)
class Task:
    """One run on one TPU.

    name: the name of the TPU, and of the run's folder in the bucket. type: the accelerator type, such as v5litepod-16.
    bucket: gs://BUCKET[/FOLDER]; the run is kept in BUCKET/NAME/run. shards: gs:// folder that `prepare` made. args:
    flags of `bert-fast pretrain`. spot: cheaper, and may be preempted at any time. queued: wait in the queue of Cloud
    TPU until there is capacity. runtime: the software version, if not the type's default. package: a local folder, from
    which a wheel is built and copied, or a requirement for pip that includes the extra [tpu]. sync_seconds: time
    between two copies of the run folder to the bucket.
    """

    name: str
    project: str
    zone: str
    type: str
    bucket: str
    shards: str
    args: tuple[str, ...]
    spot: bool = False
    queued: bool = False
    runtime: str = ""
    package: str = "."
    sync_seconds: int = 300

    @property
    def kept(self) -> str:
        """Where the run folder is kept."""
        return f"{self.bucket}/{self.name}/run"

    @property
    def is_local(self) -> bool:
        """Whether the package is a folder of this machine."""
        return pathlib.Path(self.package).expanduser().is_dir()


def read(path: str) -> Task:
    """The task in a TOML file. Raises BadInput for a file, a key or a value that cannot be used."""
    try:
        given = tomllib.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): expected a task, such as {example()}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise BadInput(f"{path} is not TOML ({error}): see {example()}") from None
    fields = {field.name: field for field in dataclasses.fields(Task)}
    if unknown := sorted(given.keys() - fields):
        raise BadInput(f"{path}: unknown key {unknown[0]!r}: expected some of {', '.join(fields)}")
    for name, field in fields.items():
        if name not in given:
            if field.default is dataclasses.MISSING:
                raise BadInput(f"{path}: {name} is missing: see {example()}")
            continue
        expected = {"args": list, "spot": bool, "queued": bool, "sync_seconds": int}.get(name, str)
        value = given[name]
        if type(value) is not expected or (expected is list and not all(isinstance(arg, str) for arg in value)):
            wanted = {list: "a list of texts", bool: "true or false", int: "a whole number", str: "a text"}[expected]
            raise BadInput(f"{path}: {name} = {value!r}: expected {wanted}")
        if "YOUR-" in str(value):
            raise BadInput(f"{path}: {name} = {value!r}: replace the part that begins with YOUR-")
    return checked(Task(**{**given, "args": tuple(given["args"])}), path)


def checked(task: Task, path: str) -> Task:
    """The task with its runtime version and no "/" at the ends of folders. Raises BadInput for an unusable value."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", task.name):
        raise BadInput(f"{path}: name = {task.name!r}: expected at most 63 of a-z, 0-9 and -, beginning with a letter")
    family, _, size = task.type.partition("-")
    if family not in RUNTIMES or not size.isdigit():
        hint = (
            ": TPU7x is reached through GKE only, not as a TPU VM"
            if task.type.startswith(("tpu7x", "ironwood"))
            else ""
        )
        raise BadInput(
            f"{path}: type = {task.type!r}{hint}: expected {', '.join(RUNTIMES)}, then - and a size, such as "
            "v5litepod-8 (list them: gcloud compute tpus tpu-vm accelerator-types list --zone=ZONE)"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", task.zone):
        raise BadInput(f"{path}: zone = {task.zone!r}: expected a zone (not a region), such as us-west4-a")
    for name in ("bucket", "shards"):
        if not re.fullmatch(r"gs://[^/\s]+(/[^\s]*)?", getattr(task, name)):
            raise BadInput(f"{path}: {name} = {getattr(task, name)!r}: expected gs://BUCKET or gs://BUCKET/FOLDER")
    if task.sync_seconds < 1:
        raise BadInput(f"{path}: sync_seconds = {task.sync_seconds}: expected at least 1")
    if not any(arg.startswith(("--config=", "-config=")) for arg in task.args):
        raise BadInput(f'{path}: args has no --config=...: expected a config, such as "--config=bert:size=base"')
    for arg in task.args:
        flag = arg.lstrip("-").split("=")[0]
        if not arg.startswith("-") or flag in OURS:
            raise BadInput(f"{path}: args has {arg!r}: expected flags of pretrain other than --{', --'.join(OURS)}")
    if pathlib.Path(task.package).expanduser().is_dir():
        if not (pathlib.Path(task.package).expanduser() / "pyproject.toml").is_file():
            raise BadInput(f"{path}: package = {task.package!r} has no pyproject.toml: expected a clone of bert_fast")
    elif "[tpu]" not in task.package:
        raise BadInput(
            f"{path}: package = {task.package!r}: expected a folder, or a requirement with the extra [tpu], such as "
            '"bert_fast[tpu] @ git+https://..."'
        )
    return dataclasses.replace(
        task,
        bucket=task.bucket.rstrip("/"),
        shards=task.shards.rstrip("/"),
        runtime=task.runtime or RUNTIMES[family],
    )


def example() -> str:
    """Path of the example task in the repository, relative to the current folder if possible."""
    return os.path.relpath(pathlib.Path(__file__).with_name("bert_base.toml"))
