"""The command doctor: each check fails when it should, and names a remedy."""

import json
import os
import pathlib
import subprocess
import types

import pytest

from bert_fast import __main__ as commands
from bert_fast import doctor
from bert_fast import storage as buckets
from bert_fast.doctor import machine, software, storage, training
from helpers.made_shards import make_small_folder

CPU = {"backend": "cpu", "count": 1, "kind": "cpu", "memory": [None]}


def answers(monkeypatch, about=None, code=0, error="", late=False):
    """Replaces the process that lists the devices."""

    def run(command, **options):
        if late:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, "a line of a library\n" + json.dumps(about) + "\n", error)

    monkeypatch.setattr(machine, "subprocess", types.SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))


def pci(folder, *devices):
    for number, (vendor, kind) in enumerate(devices):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "vendor").write_text(vendor + "\n")
        (folder / str(number) / "class").write_text(kind + "\n")
    return folder


def test_accelerators_are_recognised_by_their_vendor(tmp_path):
    assert machine.attached(pci(tmp_path / "gpu", ("0x10de", "0x030200"), ("0x8086", "0x030000"))) == ["an NVIDIA GPU"]
    assert machine.attached(pci(tmp_path / "tpu", ("0x1ae0", "0xff0000"))) == ["a TPU"]
    assert machine.attached(pci(tmp_path / "network", ("0x10de", "0x020000"))) == []


def test_a_silent_fall_back_to_the_cpu_fails_the_check(monkeypatch):
    answers(monkeypatch, CPU)
    monkeypatch.setattr(machine, "attached", lambda: ["a TPU"])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = machine.devices()
    assert found.verdict == doctor.FAIL
    assert "JAX uses the CPU, but this machine has a TPU" in found.found
    assert "JAX_PLATFORMS=cpu" in found.remedy
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert machine.devices().verdict == doctor.PASS
    answers(monkeypatch, {"backend": "tpu", "count": 4, "kind": "TPU v4", "memory": [2**35] * 4})
    assert machine.devices() == doctor.passed("devices", "4 x TPU v4 (tpu), 32.0 GiB each (JAX_PLATFORMS=cpu)")


def test_devices_that_fail_or_do_not_answer_are_reported(monkeypatch):
    answers(monkeypatch, code=1, error="Traceback\nRuntimeError: no TPU found\n")
    assert (machine.devices().verdict, machine.devices().found) == (doctor.FAIL, "RuntimeError: no TPU found")
    answers(monkeypatch, late=True)
    assert "did not list its devices within 120 s" in machine.devices().found


def test_jax_lists_the_devices_of_this_machine():
    assert "(cpu)" in machine.devices().found


def test_too_little_memory_fails_the_check(monkeypatch):
    assert machine.memory().verdict == doctor.PASS
    monkeypatch.setattr(machine, "available", lambda: 2**30)
    assert machine.memory() == doctor.failed("memory", "1.0 GiB free", "free some: expected at least 2 GiB")


def test_memory_that_holds_copies_of_files_counts_as_free(monkeypatch):
    stat = "anon 1\ninactive_file 9000000000\nactive_file 1\n"
    texts = {"max": "16000000000", "current": "15500000000", "stat": stat}
    monkeypatch.setattr(machine, "available", lambda: 2**40)
    monkeypatch.setattr(machine, "_text", lambda path: texts[path.suffix[1:]])
    assert machine.memory() == doctor.passed("memory", "8.8 GiB free")


def test_another_process_that_holds_an_accelerator_fails_the_check(tmp_path):
    for pid, target in ((7, "/dev/nvidia0"), (8, "/dev/nvidiactl"), (os.getpid(), "/dev/accel0")):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/comm").write_text("python\n")
        (tmp_path / f"{pid}/fd/3").symlink_to(target)
    found = machine.others(tmp_path)
    assert (found.verdict, found.found) == (doctor.FAIL, "process 7 (python) holds /dev/nvidia0")
    (tmp_path / "7/fd/3").unlink()
    assert machine.others(tmp_path).verdict == doctor.PASS


@pytest.mark.parametrize(("shift", "said"), [(100, "has a time"), (-100, "has a time"), (-1e9, "it is 19|it is 20")])
def test_a_wrong_clock_fails_the_check(tmp_path, monkeypatch, shift, said):
    assert machine.clock(tmp_path).verdict == doctor.PASS
    now = machine.time.time()
    monkeypatch.setattr(machine.time, "time", lambda: now + shift)
    found = machine.clock(tmp_path)
    assert found.verdict == doctor.FAIL
    assert any(part in found.found for part in said.split("|"))


def test_missing_or_old_packages_fail_the_check(monkeypatch):
    wanted = ["jax>=0.10.2", "nowhere>=1", "numpy>=2.2", 'torch>=99; extra == "test"']
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda _: wanted)
    found = software.requirements()
    assert (found.verdict, found.found) == (doctor.FAIL, "nowhere is missing (at least 1)")
    wanted[:] = ["numpy>=999.1"]
    assert "(at least 999.1)" in software.requirements().found
    wanted[:] = ["numpy>=2.2"]
    assert software.requirements().verdict == doctor.PASS
    assert software.numbers("0.10.2.dev3+cuda") == (0, 10, 2)


def test_an_accelerator_package_for_another_version_of_jax_fails_the_check(monkeypatch):
    there = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42"}
    monkeypatch.setattr(software, "installed", there.get)
    monkeypatch.setattr(software.versions, "libtpu_of_jax", lambda: "0.0.42")
    assert software.accelerator().verdict == doctor.PASS
    there["libtpu"] = "0.0.41"
    found = software.accelerator()
    assert (found.verdict, found.found) == (doctor.FAIL, "for jax 0.10.2: libtpu 0.0.41 (expected 0.0.42)")
    assert 'pip install "jax[tpu]==0.10.2"' in found.remedy


def test_a_full_disk_or_a_path_that_is_a_file_fails_the_check(tmp_path, monkeypatch):
    assert storage.disk(tmp_path / "new").verdict == doctor.PASS
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    found = doctor._safely(lambda: storage.disk(tmp_path / "file"))
    assert (found.verdict, "is a file" in found.found) == (doctor.FAIL, True)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**30))
    assert "1.0 GiB free" in storage.disk(tmp_path).found
    assert storage.disk(tmp_path).verdict == doctor.FAIL


def test_each_missing_right_to_a_bucket_fails_the_check(bucket, bucket_server):
    url = f"{bucket}/runs"
    assert storage.bucket(url).verdict == doctor.PASS
    assert buckets.open(bucket).names() == []
    for request, what in {
        "PUT": "write doctor-",
        "GET .*doctor-": "read doctor-",
        "GET [^.]*/$": "list its objects",
        "DELETE": "delete doctor-",
    }.items():
        bucket_server.fail(request, 403)
        found = storage.bucket(url)
        assert (found.verdict, f"{url}: could not {what}" in found.found) == (doctor.FAIL, True)
        assert "get the rights to read, write, list and delete" in found.remedy
        bucket_server.recover()


def test_a_bucket_that_does_not_exist_or_answer_fails_the_check(bucket, bucket_server):
    assert storage.bucket("nowhere://bucket").verdict == doctor.FAIL
    assert storage.bucket("s3://no-such-bucket").remedy == "create the bucket, or correct its name"
    bucket_server.fail("PUT", 503)
    assert "tried again 1 times" in storage.bucket(bucket).found


def test_a_bucket_that_ignores_conditions_or_loses_objects_fails_the_check(bucket, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(buckets.Bucket, "replace", lambda *_: b"version")
        assert "If-Match is ignored" in storage.bucket(bucket).found
        patch.setattr(buckets.Bucket, "replace", lambda *_: None)  # only If-None-Match works
        assert "If-Match fails" in storage.bucket(bucket).found
    assert buckets.open(bucket).names() == []  # nothing is left behind
    monkeypatch.setattr(buckets.Bucket, "names", lambda *_: [])
    assert "cannot be read or listed" in storage.bucket(bucket).found


def test_damaged_shards_fail_the_check(tmp_path):
    folder = make_small_folder(tmp_path)
    assert training.shards("").verdict == doctor.SKIP
    assert "83 word pieces, every checksum is right" in training.shards(str(folder)).found
    (folder / "train-lengths.npy").write_bytes(b"")
    found = doctor._safely(lambda: training.shards(str(folder)))
    assert (found.verdict, "train-lengths.npy has 0 bytes" in found.found) == (doctor.FAIL, True)


def test_the_checks_of_a_step_and_a_checkpoint_pass_but_wrong_numbers_fail_them(tmp_path, monkeypatch):
    assert training.step().verdict == doctor.PASS
    assert training.checkpoint(tmp_path).verdict == doctor.PASS
    assert list(tmp_path.iterdir()) == []
    state, stage, _, seconds = training._trained()
    other = state._replace(step=state.step + 1)
    monkeypatch.setattr(training.checkpoints, "restore", lambda *_: other)
    assert training.checkpoint(tmp_path).found == "the state that was read back differs"
    for loss in (float("nan"), 9.0):
        monkeypatch.setattr(training, "_trained", lambda loss=loss: (state, stage, loss, seconds))
        assert "the devices compute wrong numbers" in training.step().remedy


def test_a_check_that_raises_counts_as_failed_and_the_others_continue(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 1 / 0)
    monkeypatch.setattr(machine, "devices", lambda: doctor.failed("devices", "none", "buy one"))
    found = {result.name: result for result in doctor.examine("", str(tmp_path))}
    assert [result.verdict for name, result in found.items() if name in ("step", "checkpoint")] == [doctor.SKIP] * 2
    assert found["<lambda>"].found == "ZeroDivisionError: division by zero"
    assert found["disk"].verdict == doctor.PASS


@pytest.mark.parametrize("verdict", [doctor.PASS, doctor.FAIL, doctor.SKIP])
def test_exit_code_and_output_tell_whether_a_check_failed(monkeypatch, capsys, verdict):
    results = [doctor.passed("python", "3.12"), doctor.Result("disk", verdict, "full", "free some")]
    monkeypatch.setattr(doctor, "examine", lambda data, place: iter(results))
    assert commands.main(["doctor"]) == (verdict == doctor.FAIL)
    said = capsys.readouterr().out
    assert f"{verdict}  disk          full\n                    free some\n" in said
    assert ("1 of 2 checks failed: disk" in said) == (verdict == doctor.FAIL)
    assert commands.main(["doctor", "--json"]) == (verdict == doctor.FAIL)
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == (verdict != doctor.FAIL)
    assert found["checks"][1] == {"name": "disk", "verdict": verdict, "found": "full", "remedy": "free some"}


def test_the_documentation_names_every_check(monkeypatch):
    page = pathlib.Path(__file__).parents[1].joinpath("docs/doctor.md").read_text()
    monkeypatch.setattr(machine, "devices", lambda: doctor.failed("devices", "none", "buy one"))
    for result in doctor.examine("", "."):
        name = "devices" if result.name == "<lambda>" else result.name
        assert f"| `{name}` |" in page
