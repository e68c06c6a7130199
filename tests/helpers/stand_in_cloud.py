"""Stand-ins for gcloud and for the programs that vm.sh calls on a TPU VM. This file runs under all of their names.

The cloud is the folder $CLOUD: calls.txt and calls_of_workers.txt (command lines of gcloud), node and queue (states),
hosts (number of workers), bucket/, worker-N/ (home folders), plan.json (what happens at which call).

An entry of the plan is [TEXT, ACTION, VALUE]. Entries are used in order, each at the first call that contains its TEXT:
`fail` prints VALUE and fails, `state` makes `describe` answer VALUE, and `preempt` removes the machines and leaves the
node in state VALUE.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(
    os.environ.get("CLOUD", "")
)  # empty in the tests' own process, which uses only `make` and `end_machines`
PROGRAMS = ("gcloud", "curl", "uv", "sudo", "mountpoint")
WORKER = os.environ.get("WORKER")


def read(name: str) -> str:
    path = CLOUD / name
    return path.read_text() if path.is_file() else ""


def make(root: pathlib.Path) -> dict[str, str]:
    """Makes a cloud and its programs in `root`. Returns environment variables that point to them."""
    (root / "cloud/bucket").mkdir(parents=True)
    (root / "bin").mkdir()
    for name in PROGRAMS:
        program = root / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        program.chmod(0o755)
    return {"CLOUD": str(root / "cloud"), "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": str(root)}


def homes() -> list[pathlib.Path]:
    return [CLOUD / f"worker-{i}" for i in range(int(read("hosts")))]


def end_machines(cloud: pathlib.Path):
    """Kills everything that runs on the workers, and removes their disks."""
    for home in cloud.glob("worker-*"):
        for group in (home / "bert_fast_vm").glob("pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(group.read_text()), signal.SIGKILL)
    for home in cloud.glob("worker-*"):
        shutil.rmtree(home, ignore_errors=True)


def fail(text: str):
    print(text, file=sys.stderr)
    sys.exit(1)


def planned(line: str) -> tuple[str, str]:
    """The action that the plan has for this call, and its value."""
    plan = json.loads(read("plan.json") or "[]")
    if not plan or plan[0][0] not in line:
        return "", ""
    (CLOUD / "plan.json").write_text(json.dumps(plan[1:]))
    return plan[0][1], plan[0][2]


def gcloud(argv: list[str]):
    line = shlex.join(["gcloud", *argv])
    with (CLOUD / ("calls.txt" if WORKER is None else "calls_of_workers.txt")).open("a") as calls:
        calls.write(line + "\n")
    action, value = planned(line) if WORKER is None else ("", "")
    if action == "fail":
        fail(value)
    if action == "preempt":
        end_machines(CLOUD)
        (CLOUD / "node").write_text(value)
        if read("queue"):
            (CLOUD / "queue").write_text("SUSPENDED")
    if argv[0] == "storage":
        return storage(argv[1], [word for word in argv[2:] if not word.startswith("--")], argv)
    assert argv[:2] == ["compute", "tpus"], line
    assert {"--project", "--zone"} <= {word.split("=")[0] for word in argv}, line
    answer = {"tpu-vm": tpu_vm, "queued-resources": queued_resources}[argv[2]](argv[3], argv)
    if argv[3] == "describe":
        print(value if action == "state" else answer)


def tpu_vm(verb: str, argv: list[str]) -> str:
    state = read("node")
    if verb == "create":
        if state:
            fail("ERROR: (gcloud.compute.tpus.tpu-vm.create) ALREADY_EXISTS: Resource already exists")
        return appear(argv)
    if not state:
        fail("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'node' was not found")
    if verb == "delete":
        end_machines(CLOUD)
        (CLOUD / "node").unlink()
    if verb in ("ssh", "scp") and state != "READY":
        fail("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) the TPU is not in state READY")
    if verb == "scp":
        source = pathlib.Path(next(word for word in argv[4:] if not word.startswith("--")))
        for home in homes():
            shutil.copytree(source, home / source.name, dirs_exist_ok=True)
    if verb == "ssh":
        flags = dict(word[2:].split("=", 1) for word in argv if "=" in word)
        ssh(flags["worker"], flags["command"])
    return state


def appear(argv: list[str]) -> str:
    (CLOUD / "node").write_text("READY")
    for home in homes():
        home.mkdir()
    assert any(word.startswith("--accelerator-type=") for word in argv)
    return ""


def queued_resources(verb: str, argv: list[str]) -> str:
    if verb == "create":
        assert any(word.startswith("--node-id=") for word in argv)
        (CLOUD / "queue").write_text("ACTIVE")
        return appear(argv)
    if not read("queue"):
        fail("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: it was not found")
    if verb == "delete":
        assert "--force" in argv
        end_machines(CLOUD)
        (CLOUD / "queue").unlink()
        (CLOUD / "node").unlink(missing_ok=True)
    return read("queue")


def ssh(worker: str, command: str):
    """Runs a command on the workers in parallel, as gcloud does."""
    chosen = range(len(homes())) if worker == "all" else [int(worker)]
    running = [
        subprocess.Popen(
            ["bash", "-c", command], cwd=homes()[i], env={**os.environ, "HOME": str(homes()[i]), "WORKER": str(i)}
        )
        for i in chosen
    ]
    if codes := [code for process in running if (code := process.wait())]:
        sys.exit(codes[0])


def storage(verb: str, words: list[str], argv: list[str]):
    def local(name: str) -> pathlib.Path:
        return CLOUD / "bucket" / name.removeprefix("gs://") if name.startswith("gs://") else pathlib.Path(name)

    places = [local(word) for word in words]
    if verb == "ls":
        if not places[0].exists():
            fail("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
        print("\n".join(f"{words[0]}{path.name}{'/' * path.is_dir()}" for path in sorted(places[0].iterdir())))
    elif verb == "rm":
        shutil.rmtree(places[0])
    elif verb == "cp":
        places[1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(places[0], places[1])
    elif verb == "rsync":
        rsync(places[0], places[1], argv)


def rsync(source: pathlib.Path, target: pathlib.Path, argv: list[str]):
    if not source.is_dir():
        fail("ERROR: (gcloud.storage.rsync) Did not find existing container: it matched no objects.")
    pattern = next((word.split("=", 1)[1] for word in argv if word.startswith("--exclude=")), "(?!)")
    names = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    names = {name for name in names if not re.match(pattern, name)}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):  # removed in the meantime
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    if "--delete-unmatched-destination-objects" in argv:
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if str(path.relative_to(target)) not in names:
                path.unlink()


def curl(argv: list[str]):
    url = argv[-1]
    if "astral.sh" in url:
        print(f'mkdir -p "$HOME/.local/bin"; cp {shutil.which("uv")} "$HOME/.local/bin/uv"')
    elif url.endswith("agent-worker-number"):
        print(WORKER, end="")
    elif url.endswith("worker-network-endpoints"):
        print(",".join(f"unknown:{i}:10.0.0.{i}" for i in range(int(read("hosts")))), end="")
    else:
        fail(f"no such metadata: {url}")


def uv(argv: list[str]):
    if argv[0] == "venv":
        (pathlib.Path(argv[-1]) / "bin").mkdir(parents=True)
    else:  # pip install: installs the test's stand-in for bert-fast
        python = pathlib.Path(argv[argv.index("--python") + 1])
        assert "[tpu]" in argv[-1]
        shutil.copy(CLOUD / "bert-fast", python.parent / "bert-fast")


def sudo(argv: list[str]):
    """Stands in for NFS: an export is a line in a file, and a mount is a symbolic link."""
    words = [word for word in argv if "=" not in word]
    exported = CLOUD / "exports"
    if words[0] == "tee":
        exported.write_text(sys.stdin.read())
    elif words[0] == "mount":
        here = pathlib.Path(argv[-1])
        client = f"10.0.0.{WORKER}"
        if client not in read("exports"):
            fail("mount.nfs: Connection refused")
        here.rmdir()
        here.symlink_to(CLOUD / "worker-0/bert_fast_vm/shared")
    else:
        assert words[0] in ("apt-get", "exportfs")


def mountpoint(argv: list[str]):
    sys.exit(0 if pathlib.Path(argv[-1]).is_symlink() else 1)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2:])
