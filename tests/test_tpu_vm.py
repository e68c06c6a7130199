"""The commands for Cloud TPU VMs, run against a stand-in cloud: what they call, what they refuse, what they survive."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.tpu_vm.__main__ import main
from helpers import stand_in_cloud

ROOT = pathlib.Path(__file__).parents[1]
VM = ROOT / "experiments/tpu_vm"
# A stand-in for bert-fast. On worker 0, it counts steps and writes a checkpoint after each step. On the other workers,
# it only waits until worker 0 is done.
COUNTER = """#!/bin/bash
for flag in "$@"; do case $flag in --workdir=*) run=${flag#*=} ;; --config.data.dir=*) data=${flag#*=} ;; esac; done
echo "$WORKER $JAX_PLATFORMS $*" >> "$CLOUD/started.txt"
test -f "$data/manifest.json" || exit 9
[ "$WORKER" = 0 ] || { trap 'exit 143' TERM; while ! [ -f "$run/done" ]; do sleep 0.02; done; exit 0; }
mkdir -p "$run/checkpoints"
step=$(ls "$run/checkpoints" | sort -n | tail -n 1)
echo "from ${step:=0}" >> "$CLOUD/started.txt"
trap 'exit 143' TERM
while [ "$step" -lt "$(cat "$CLOUD/steps")" ]; do
  old=$step step=$((step + 1))
  mkdir "$run/checkpoints/$step.part"
  echo "$step" > "$run/checkpoints/$step.part/checksums.json"
  mv "$run/checkpoints/$step.part" "$run/checkpoints/$step"
  rm -rf "$run/checkpoints/$old"
  echo "step $step"
  sleep 0.05
done
touch "$run/done"
exit "$(cat "$CLOUD/code")"
"""


class Cloud:
    """A stand-in cloud and a task file for it. Calling it runs a command of experiments.tpu_vm on the task."""

    def __init__(self, root: pathlib.Path, capfd, processes: list, hosts: int = 1, **task):
        self.folder, self.capfd, self.processes = root / "cloud", capfd, processes
        self.write("hosts", str(hosts))
        self.write("steps", "3")
        self.write("code", "0")
        self.write("bert-fast", COUNTER)
        (self.folder / "bert-fast").chmod(0o755)
        (self.folder / "bucket/b/shards").mkdir(parents=True)
        self.write("bucket/b/shards/manifest.json", "{}")
        self.task = {
            "name": "mini", "project": "p-1", "zone": "us-west4-a", "type": "v5litepod-8", "bucket": "gs://b",
            "shards": "gs://b/shards", "args": ["--config=bert:size=mini,objective=mlm", "--config.steps=7"],
            "package": "bert_fast[tpu] @ file:///x.whl", "sync_seconds": 1, **task,
        }  # fmt: skip
        self.path = root / "task.toml"
        self.path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self.task.items()))

    def write(self, name: str, text: str):
        (self.folder / name).write_text(text)

    def plan(self, *entries):
        self.write("plan.json", json.dumps(entries))

    def start(self, command: str, *flags: str) -> subprocess.Popen:
        """Starts a command in a separate process."""
        argv = [sys.executable, "-m", "experiments.tpu_vm", command, str(self.path), "--poll=0.1", *flags]
        process = subprocess.Popen(argv, cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True)
        self.processes.append(process)
        return process

    def __call__(self, command: str, *flags: str, code: int = 0) -> tuple[str, str]:
        """Runs a command, which must return the exit code `code`. Returns its stdout and stderr."""
        self.capfd.readouterr()
        polls = ["--poll=0.1"] if command in ("run", "resume") else []
        found = main([command, str(self.path), *polls, *flags])
        out, err = self.capfd.readouterr()
        assert found == code, err
        return out, err

    def calls(self) -> list[str]:
        path = self.folder / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    def started(self) -> list[str]:
        return (self.folder / "started.txt").read_text().splitlines()

    def bucket(self) -> list[str]:
        kept = self.folder / "bucket/b/mini/run"
        return sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())


def wait_for(true, seconds: float):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path, monkeypatch, capfd):
    for name, value in stand_in_cloud.make(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.chdir(ROOT)
    processes: list[subprocess.Popen] = []
    yield functools.partial(Cloud, tmp_path, capfd, processes)
    for process in processes:
        process.kill()
        process.communicate()
    stand_in_cloud.end_machines(tmp_path / "cloud")


def test_a_run_from_create_to_delete(cloud, tmp_path):
    mini = cloud()
    mini("create")
    mini("setup")
    assert "run: idle" in mini("status")[0]
    assert "finished" in mini("run")[1]
    assert "mini (v5litepod-8, us-west4-a): READY\nrun: ended 0" in mini("status")[0]
    assert "step 3" in mini("logs")[0]
    mini("fetch", f"--to={tmp_path}/fetched")
    assert (tmp_path / "fetched/checkpoints/3/checksums.json").is_file()
    mini("delete")
    assert "absent" in mini("status")[0]
    first, *_ = mini.started()
    assert first.startswith("0 tpu,cpu pretrain --config=bert:size=mini,objective=mlm --config.steps=7 --distributed ")
    create = next(call for call in mini.calls() if " create " in call)
    assert "--version=v2-alpha-tpuv5-lite" in create
    assert "--spot" not in create


@pytest.mark.parametrize(
    "task", [{}, {"spot": True, "queued": True, "type": "v6e-16"}], ids=["on demand", "queued spot"]
)
def test_a_dry_run_prints_what_is_run(cloud, task, tmp_path):
    mini = cloud(**task)
    for command in ("resume", "status", "logs", "fetch", "delete", "create", "setup", "run"):
        flags = [f"--to={tmp_path}/fetched"] if command == "fetch" else []
        before = mini.calls()
        printed, _ = mini(command, *flags, "--dry_run")
        assert mini.calls() == before
        _, shown = mini(command, *flags)
        ran = [line.removeprefix("$ ") for line in shown.splitlines() if line.startswith("$ ")]
        polls = [line for line in ran if "describe" in line or "vm.sh status" in line]
        if command in ("run", "resume"):  # the real run takes a while, so it is polled more often
            assert [line for line in printed.splitlines() if line not in polls] == [x for x in ran if x not in polls]
            assert set(polls) == {line for line in printed.splitlines() if line in polls}
        else:
            assert printed.splitlines() == ran
        assert [line for line in ran if line.startswith("gcloud")] == mini.calls()[len(before) :]
        assert any("vm.sh start" in line for line in ran) == (command in ("run", "resume"))


@pytest.mark.parametrize("command", ["create", "setup", "run", "status", "logs", "resume", "fetch", "delete"])
def test_a_dry_run_runs_nothing(cloud, command, monkeypatch):
    mini = cloud()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "gcloud " in mini(command, "--dry_run")[0]


@pytest.mark.parametrize("command", ["create", "run", "resume", "delete"])
def test_a_dry_run_does_not_speak_as_if_it_had_done_something(cloud, command):
    said = cloud()(command, "--dry_run")[1]
    assert said.startswith("dry run: nothing is run. If th")
    assert said.endswith("dry run: nothing was run, made or deleted\n")
    assert not re.search("READY|finished|: ready|: deleted", said)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config=bert:size=huge"], "unknown size 'huge'"),
        (["--config=bert", "--config.stps=7"], "stps"),
        (["--config=bert", "--config.steps=many"], "--config.steps=many: expected a whole number"),
        (["--config=bert", "--config.phases=1024:1"], "above the model's 512 positions"),
        (["--config=bert", "--config.methods=layer_drp"], "did you mean layer_drop"),
        (["--config=bert", "--config.budget=tokens:1"], "does not allow even one step"),
        (["--config=bert", "--stps=7"], "stps"),
        (["--config=mine.py:size=base"], "--config=mine.py:size=base names a file of this machine"),
        (["--config=bert", "--config.costs=v5e.json"], "names a file of this machine.*tokens or flops"),
        (["--config=bert", "--config.init=runs/first"], "names a file of this machine.*gs://"),
    ],
)
def test_flags_that_pretrain_would_refuse_are_refused_before_any_call(cloud, args, said):
    mini = cloud(args=args)
    for command, *flags in (["create"], ["setup", "--dry_run"], ["run"], ["resume", "--dry_run"]):
        printed, error = mini(command, *flags, code=2)
        assert not printed
        assert re.search(rf"^error: .*task.toml: args: .*{said}", error), error
    assert not mini.calls()


def test_without_the_package_the_flags_are_not_checked_and_a_note_says_so(cloud, monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_fast.planner.estimate", None)
    printed, said = cloud(args=["--config=bert:size=huge"])("create", "--dry_run")
    assert "gcloud " in printed
    assert "note: args are not checked here, because " in said


def test_a_missing_gcloud_is_an_error_that_says_where_to_get_it(cloud, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "gcloud is not installed: see https://cloud.google.com/sdk" in cloud()("create", code=2)[1]


def test_a_preempted_run_is_resumed_on_a_new_tpu(cloud):
    mini = cloud(spot=True)
    mini.write("steps", "100000")
    watching = mini.start("resume")
    wait_for(lambda: any("checksums.json" in name for name in mini.bucket()), 60)
    mini.plan(["describe", "preempt", "PREEMPTED"])
    wait_for(lambda: (mini.folder / "plan.json").read_text() == "[]", 60)
    mini.write("steps", "1")
    _, shown = watching.communicate(timeout=60)
    assert watching.returncode == 0, shown
    assert "mini: PREEMPTED" in shown
    began = [int(line.split()[1]) for line in mini.started() if line.startswith("from")]
    assert began[0] == 0
    assert began[1] > 0
    *checkpoints, done = mini.bucket()
    assert done == "done"
    # An older checkpoint is still there if the TPU was lost between the copy of the newest and the older one's removal.
    assert max(int(name.split("/")[1]) for name in checkpoints) == began[1]
    assert [call.split()[4] for call in mini.calls() if re.search("tpu-vm (create|delete)", call)] == [
        "create", "delete", "create",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_tpu_that_is_lost_while_it_is_set_up_is_made_again(cloud):
    mini = cloud()
    mini.plan(["vm.sh setup", "preempt", "TERMINATED"])
    assert "lost while it was being set up" in mini("resume")[1]
    assert mini.bucket() == ["checkpoints/3/checksums.json", "done"]


def test_a_queued_request_is_waited_for_and_made_again_when_it_is_suspended(cloud):
    mini = cloud(queued=True)
    mini("create")
    mini.plan(
        *(["queued-resources describe", "state", word] for word in ("WAITING_FOR_RESOURCES", "PROVISIONING")),
        ["queued-resources describe", "preempt", "PREEMPTED"],
    )
    _, shown = mini("resume")
    words = re.findall(r"^mini: ([A-Z_]+)", shown, re.MULTILINE)
    assert words[:4] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDED", "READY"]
    assert sum("queued-resources delete mini --force" in call for call in mini.calls()) == 1


def test_a_failed_request_is_an_error(cloud):
    mini = cloud(queued=True)
    mini("create")
    mini.plan(["describe", "state", "FAILED"])
    assert re.search("request of mini failed: .*queued-resources describe mini.* says why", mini("resume", code=2)[1])


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0", "ask for more quota"),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project p-1", "gcloud services enable tpu.googleapis"),
        ("PERMISSION_DENIED: Permission tpu.nodes.create denied", "tpu.admin"),
        ("You do not currently have an active account selected", "gcloud auth login"),
        ("INVALID_ARGUMENT: runtime version v9 not found", "versions list --zone=us-west4-a"),
        ("INVALID_ARGUMENT: accelerator type v5litepod-7 not found", "accelerator-types list --zone=us-west4-a"),
        ("There is no more capacity in the zone", "no capacity for v5litepod-8 in us-west4-a now"),
        ("something new", "failed with exit code 1: see its message above"),
    ],
)
def test_an_error_of_gcloud_is_shown_with_a_remedy(cloud, said, remedy):
    mini = cloud()
    mini.plan([" create ", "fail", f"ERROR: (gcloud.compute.tpus.tpu-vm.create) {said}"])
    shown = mini("create", code=2)[1]
    assert said in shown
    assert remedy in shown


@pytest.mark.slow
def test_a_watcher_waits_for_capacity_and_survives_a_failing_network(cloud):
    mini = cloud()
    mini.plan(
        [" create ", "fail", "There is no more capacity in the zone"],
        ["describe", "fail", "Could not resolve host: tpu.googleapis.com"],
    )
    shown = mini("resume")[1]
    assert "no capacity in us-west4-a now, trying again" in shown
    assert "state unknown" in shown
    assert "finished" in shown


def test_commands_in_the_wrong_order_are_refused(cloud):
    mini = cloud()
    for command in ("setup", "run", "logs"):
        assert "mini is absent (there is no such TPU): `create` it first" in mini(command, code=2)[1]
    assert "nothing to delete" in mini("delete", code=2)[1]
    assert "holds no run yet" in mini("fetch", code=2)[1]
    mini("create")
    assert "exists already (READY)" in mini("create", code=2)[1]
    assert "`setup` it first" in mini("run", code=2)[1]
    assert "no log yet" in mini("logs", code=2)[1]
    mini.plan(["describe", "state", "CREATING"])
    assert "CREATING (not ready yet)" in mini("setup", code=2)[1]


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_but_not_the_run(cloud):
    mini = cloud()
    mini.write("steps", "100000")
    watching = mini.start("resume")
    for line in watching.stderr:
        if "run running" in line:
            break
    os.killpg(watching.pid, signal.SIGINT)
    assert "`resume` watches it again" in watching.communicate(timeout=20)[1]
    assert watching.returncode == 130
    assert "run: running: step " in mini("status")[0]
    assert "running already" in mini("run", code=2)[1]
    assert "wait until the run ends" in mini("setup", code=2)[1]
    mini("delete")  # saves the run
    # The stand-in may be stopped after it wrote a checkpoint and before it removed the older one.
    assert max(int(name.split("/")[1]) for name in mini.bucket() if name.startswith("checkpoints")) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("code", "starts"), [(2, 1), (1, 4)])
def test_a_run_that_fails_by_itself_is_started_again_at_most_three_times(cloud, code, starts):
    mini = cloud()
    mini.write("code", str(code))
    shown = mini("resume", code=2)[1]
    assert f"the run ended {code}; this was failure {starts}. Its log ends with:" in shown
    assert "step 3\n" in shown.partition("Its log ends with:")[2]
    assert sum(line.startswith("from") for line in mini.started()) == starts


def test_the_workers_of_a_slice_share_the_run_folder_and_each_has_the_shards(cloud):
    mini = cloud(hosts=3, type="v5litepod-16")
    mini("resume")
    assert sorted(line.split()[0] for line in mini.started() if "pretrain" in line) == ["0", "1", "2"]
    for i in range(3):
        worker = mini.folder / f"worker-{i}/bert_fast_vm"
        assert (worker / "shared/run/checkpoints/3").is_dir()
        assert (worker / "shards/manifest.json").is_file()
        assert (worker / "ended").read_text() == "0\n"
    exports = (mini.folder / "exports").read_text().splitlines()
    assert [line.split()[1].split("(")[0] for line in exports] == ["10.0.0.1", "10.0.0.2"]


def test_checksums_are_uploaded_last_and_unfinished_files_are_not_uploaded(cloud):
    mini = cloud()
    home = mini.folder / "worker-0"
    run = home / "bert_fast_vm/shared/run"

    def checkpoint(step):
        (run / f"checkpoints/{step}/arrays").mkdir(parents=True)
        for name in ("arrays/d", "about.json", "checksums.json"):
            (run / f"checkpoints/{step}" / name).write_text(f"{step}")

    def keep():
        environment = os.environ | {"HOME": str(home), "WORKER": "0"}
        subprocess.run(["bash", VM / "vm.sh", "keep", "gs://b/mini/run"], env=environment, check=True)
        return mini.bucket()

    checkpoint(1)
    checkpoint("2.part")
    (run / ".lock").touch()
    (run / "config.json.77.partial").touch()
    (run / "metrics.jsonl").touch()
    of = [f"checkpoints/1/{name}" for name in ("about.json", "arrays/d", "checksums.json")]
    assert keep() == [*of, "metrics.jsonl"]
    calls = (mini.folder / "calls_of_workers.txt").read_text().splitlines()
    assert "rsync" in calls[0]
    assert calls[1].endswith("checkpoints/1/checksums.json gs://b/mini/run/checkpoints/1/checksums.json")
    shutil.rmtree(run / "checkpoints/1")
    checkpoint(3)
    assert keep() == [*(name.replace("/1/", "/3/") for name in of), "metrics.jsonl"]


def on_worker(mini, tmp_path, failing: str, said: str, *arguments: str) -> subprocess.CompletedProcess:
    """Calls a function of vm.sh on worker 0, followed by `|| exit 1`.

    The loop in vm.sh calls `keep` in the same way. bash ignores `set -e` inside a function that is called before `||`.
    gcloud fails with the message `said` if its command line contains `failing`.
    """
    (tmp_path / "failing").mkdir()
    program = tmp_path / "failing/gcloud"
    program.write_text(f"""#!/bin/sh
case "$*" in *"{failing}"*) echo '{said}' >&2; exit 1 ;; esac
exec {shutil.which("gcloud")} "$@"
""")
    program.chmod(0o755)
    environment = os.environ | {"HOME": str(mini.folder / "worker-0"), "WORKER": "0"}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    call = f"source {VM}/vm.sh true; {' '.join(arguments)} || exit 1"
    return subprocess.run(["bash", "-c", call], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("failing", ["rsync", "checksums.json gs"])
def test_a_failed_upload_removes_nothing_from_the_bucket(cloud, tmp_path, failing):
    mini = cloud()
    kept = mini.folder / "bucket/b/mini/run/checkpoints/1"
    kept.mkdir(parents=True)
    (kept / "checksums.json").write_text("1")
    newer = mini.folder / "worker-0/bert_fast_vm/shared/run/checkpoints/2"
    newer.mkdir(parents=True)
    (newer / "checksums.json").write_text("2")
    assert on_worker(mini, tmp_path, failing, "503", "keep", "gs://b/mini/run").returncode == 1
    assert (kept / "checksums.json").is_file()


def test_a_bucket_that_cannot_be_read_is_not_taken_for_an_empty_one(cloud, tmp_path):
    mini = cloud()
    (mini.folder / "worker-0/bert_fast_vm").mkdir(parents=True)
    done = on_worker(mini, tmp_path, "storage ls", "HTTPError 503", "restore", "gs://b/mini/run")
    assert done.returncode == 1
    assert "it is not known whether the run has begun: HTTPError 503" in done.stderr
    (tmp_path / "failing/gcloud").unlink()
    (tmp_path / "failing").rmdir()
    done = on_worker(mini, tmp_path, "storage ls", "One or more URLs matched no objects.", "restore", "gs://b/mini/run")
    assert done.returncode == 0


def test_shards_that_do_not_exist_end_the_watching_with_a_remedy(cloud):
    mini = cloud(shards="gs://b/missing")
    assert "look at `shards`, `bucket` and `package` in the task" in mini("resume", code=2)[1]


@pytest.mark.slow
def test_a_local_package_is_copied_as_a_wheel(cloud, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (package / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(folder, *_):\n"
        "    with zipfile.ZipFile(f'{folder}/bert_fast-1-py3-none-any.whl', 'w') as wheel:\n"
        "        info = 'bert_fast-1.dist-info/'\n"
        "        wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: bert_fast\\nVersion: 1\\n')\n"
        "        wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        wheel.writestr(info + 'RECORD', '')\n"
        "    return 'bert_fast-1-py3-none-any.whl'\n"
    )
    mini = cloud(package=str(package))
    mini("resume")
    assert (mini.folder / "worker-0/bert_fast_vm/bert_fast-1-py3-none-any.whl").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"project": None}, "project is missing"),
        ({"project": "YOUR-PROJECT"}, "replace the part that begins"),
        ({"nme": "x"}, "unknown key 'nme'"),
        ({"name": "Mini_1"}, "name = 'Mini_1': expected"),
        ({"type": "v5e-8"}, "type = 'v5e-8': expected v2, .*v5litepod"),
        ({"type": "tpu7x-8"}, "through GKE only"),
        ({"zone": "us-west4"}, r"expected a zone \(not a region\)"),
        ({"bucket": "b"}, "expected gs://BUCKET"),
        ({"spot": "yes"}, "spot = 'yes': expected true or false"),
        ({"args": ["--config.steps=1"]}, "args has no --config="),
        ({"args": ["--config=bert", "--workdir=x"]}, "args has '--workdir=x': expected flags of pretrain other than"),
        ({"package": "bert-fast"}, r"expected a folder, or a requirement with the extra \[tpu\]"),
        ({"sync_seconds": 0}, "expected at least 1"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_used_is_refused_before_any_call(cloud, changes, said):
    mini = cloud()
    task = {key: value for key, value in {**mini.task, **changes}.items() if value is not None}
    mini.path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in task.items()))
    assert re.search(said, mini("create", code=2)[1])
    assert not mini.calls()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_vm_sh():
    done = subprocess.run(["shellcheck", VM / "vm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
