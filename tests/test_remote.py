"""Runs in a bucket compute the same as runs in a folder, even if they are stopped or killed, or the server fails."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bert_fast import BadInput, Interrupted, api, cached, storage
from bert_fast.train import checkpoint, loop, remote, remote_checkpoints, remote_lock
from bert_fast.train.engine import Engine
from helpers.command_line import ROOT, bert_fast
from helpers.processes import with_port
from helpers.small_runs import make_settings, rows_without_clock, run, small_config
from helpers.started_runs import until


@pytest.fixture(scope="module")
def finished(small_shards, tmp_path_factory):
    """A run in a folder: 60 steps in two phases, with a checkpoint every 20."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(small_config(small_shards), workdir)
    return workdir


def run_in(url, config):
    with remote.run_folder(url) as (folder, mirror):
        loop.pretrain(make_settings(config), config, folder, mirror=mirror)
    return folder


def empty_cache():
    for kind in ("runs", "read", "shards"):
        shutil.rmtree(cached.folder(kind), ignore_errors=True)


def arrays_of(folder):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as reader:
        return jax.tree.map(np.asarray, reader.restore((folder / "arrays").absolute()))


def wait_for(url, step):
    """Returns once the bucket has the checkpoint of this step."""
    end = time.monotonic() + 60
    while step not in remote_checkpoints.steps(storage.open(url).names()):
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_same_end(workdir, finished):
    """Asserts that the whole state and all rows are equal, apart from clocks."""
    one, other = (arrays_of(folder / "checkpoints/60") for folder in (workdir, finished))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert rows_without_clock(workdir) == rows_without_clock(finished)


def acting(monkeypatch, actions):
    """Makes every train step call `actions[step]()` when it ends, if `actions` has that step."""
    train_step = Engine.train_step

    def stepped(self):
        train_step(self)
        if self.step in actions:
            actions[self.step]()

    monkeypatch.setattr(Engine, "train_step", stepped)


def test_run_in_a_bucket_equals_a_run_in_a_folder(bucket, shards_url, finished):
    url = f"{bucket}/runs/first"
    folder = run_in(url, small_config(shards_url))
    assert_same_end(folder, finished)
    names = storage.open(url).names()
    assert remote_checkpoints.steps(names) == [40, 60]
    assert {"config.json", "stages.json", "metrics.jsonl", "summary.json"} <= set(names)
    empty_cache()
    folder = run_in(url, small_config(shards_url))  # the run is finished, so nothing is trained
    assert_same_end(folder, finished)


def test_interrupted_run_continues_on_a_new_machine(bucket, shards_url, finished, monkeypatch):
    url, config = f"{bucket}/runs/first", small_config(shards_url)
    with monkeypatch.context() as patch:
        acting(patch, {33: lambda: signal.raise_signal(signal.SIGTERM)})
        with pytest.raises(Interrupted, match="step 33 is saved"):
            run_in(url, config)
    assert remote_checkpoints.steps(storage.open(url).names()) == [20, 33]
    empty_cache()
    assert_same_end(run_in(url, config), finished)


def test_run_survives_a_server_that_fails_for_a_while(bucket, shards_url, finished, bucket_server, monkeypatch, capfd):
    url, seen = f"{bucket}/runs/first", []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"})

        def recover():
            end = time.monotonic() + 60
            while not any("WARNING: step 20 is saved in" in text for text in seen):
                seen.append(capfd.readouterr().err)
                assert time.monotonic() < end
                time.sleep(0.05)
            bucket_server.recover()

        acting(patch, {15: lambda: bucket_server.fail(status=503), 35: recover})
        folder = run_in(url, small_config(shards_url))
    assert_same_end(folder, finished)
    assert remote_checkpoints.steps(storage.open(url).names()) == [40, 60]


def test_run_whose_server_is_gone_loses_nothing(bucket, shards_url, finished, bucket_server, monkeypatch):
    url, config = f"{bucket}/runs/first", small_config(shards_url)

    def fail():
        wait_for(url, 20)
        bucket_server.fail(status=503)

    with monkeypatch.context() as patch:
        acting(patch, {30: fail})
        with pytest.raises(BadInput, match=r"everything is in .*/runs/first-.*could not write"):
            run_in(url, config)
    bucket_server.recover()
    assert remote_checkpoints.steps(storage.open(url).names()) == [20]
    folder = run_in(url, config)
    assert_same_end(folder, finished)
    assert remote_checkpoints.steps(storage.open(url).names())[-1] == 60


def test_run_that_loses_its_lock_stops_and_uploads_nothing_more(bucket, shards_url, monkeypatch):
    url = f"{bucket}/runs/first"

    def delete():
        wait_for(url, 20)
        storage.open(url).delete("lock.json")
        time.sleep(1)  # many signs of life are due in this time; the first one finds the lock gone

    monkeypatch.setattr(remote_lock, "BEAT", 0.05)
    acting(monkeypatch, {25: delete, 30: lambda: pytest.fail("the run continued without its lock")})
    with pytest.raises(remote_lock.LockLost, match="This run stops"):
        run_in(url, small_config(shards_url))
    assert remote_checkpoints.steps(storage.open(url).names()) == [20]


def test_another_config_is_refused_on_a_new_machine(bucket, shards_url):
    url = f"{bucket}/runs/first"
    run_in(url, small_config(shards_url, steps=20))
    empty_cache()
    with pytest.raises(BadInput, match=r"learning_rate\.peak"):
        run_in(url, small_config(shards_url, steps=20, learning_rate__peak=1.0))
    assert storage.open(url).read("summary.json")


@pytest.mark.slow
def test_commands_and_functions_read_a_run_in_a_bucket(bucket, shards_url, finished, tmp_path, capsys):
    url = f"{bucket}/runs/first"
    run_in(url, small_config(shards_url))
    expected = api.evaluate(finished)
    same = ("mlm_loss", "mlm_accuracy", "step", "fingerprint")
    for place in (url, f"{url}/checkpoints/60"):
        found = api.evaluate(place)
        assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert found["data"] == shards_url
    assert api.fill_mask(url, "a [MASK]") == api.fill_mask(finished, "a [MASK]")
    assert api.export(url, tmp_path / "exported").class_name == "BertForPreTraining"
    (page,) = api.report(url, tmp_path / "report.md")
    assert "first" in page.read_text()
    done = bert_fast("evaluate", f"--checkpoint={url}/checkpoints/7")
    assert (done.returncode, "it has the steps 40, 60" in done.stderr) == (2, True)
    config = small_config(shards_url, init=url, steps=20)
    run(config, tmp_path / "warm")  # starts from the parameters in the bucket


def test_command_names_a_wrong_bucket_and_a_server_that_is_not_there(bucket, shards_url, monkeypatch):
    flags = ["--config=bert:size=tiny,debug", f"--config.data.dir={shards_url}"]
    done = bert_fast("pretrain", *flags, "--workdir=s3://no-such-bucket/run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: s3://no-such-bucket/run: could not ")
    assert "create the bucket, or correct its name" in done.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = bert_fast("pretrain", *flags, f"--workdir={bucket}/run")
    assert (done.returncode, "Could not connect" in done.stderr) == (2, True)
    assert not cached.folder("runs").exists()


# --- in separate processes --------------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """A function that starts `pretrain` in a new process. After the test, all these processes are killed."""
    processes = []

    def begin(shards_url, workdir, config, *flags):
        given = [f"--config.{key}={config[key]}" for key in ("steps", "log_every", "phases")]
        given += [
            f"--config.{name}.{key}={config[name][key]}"
            for name, key in (
                ("model", "depth"), ("eval", "every"), ("eval", "seq_len"), ("checkpoint", "every"),
                ("optimizer", "bias_correction"), ("learning_rate", "peak"),
            )
        ]  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "bert_fast",
            "pretrain",
            "--config=bert:size=tiny,debug",
            f"--workdir={workdir}",
        ]
        environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        command += [f"--config.data.dir={shards_url}", *given, *flags]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_killed_run_continues_on_a_new_machine_and_ends_like_an_uninterrupted_run(bucket, shards_url, finished, start):
    url, config = f"{bucket}/runs/first", small_config(shards_url)
    process = start(shards_url, url, config)
    until(lambda: remote_checkpoints.steps(storage.open(url).names()), process)
    process.kill()
    process.communicate()
    empty_cache()
    process = start(shards_url, url, config)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "getting it" in said
    assert_same_end(cached.folder("runs") / f"first-{cached.digest(url)}", finished)


@pytest.mark.slow
def test_second_run_in_the_same_place_is_refused_and_ctrl_c_saves_the_first(bucket, shards_url, start):
    url, config = f"{bucket}/runs/first", small_config(shards_url, steps=1_000_000)
    process = start(shards_url, url, config)
    until(lambda: remote_checkpoints.steps(storage.open(url).names()), process)
    second = start(shards_url, url, config)
    _, said = second.communicate(timeout=100)
    assert (second.returncode, f"error: another run (process {process.pid} on" in said) == (2, True), said
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert f"the run is in {url}" in said
    (saved,) = (int(line.split()[4]) for line in said.splitlines() if "is saved in" in line and "stopped" in line)
    assert remote_checkpoints.steps(storage.open(url).names())[-1] == saved


@pytest.mark.slow
def test_two_processes_share_the_local_folder(bucket, shards_url, start):
    url, config = f"{bucket}/runs/first", small_config(shards_url, steps=20)
    flags = [*with_port(), "--config.mesh.data=2"]
    processes = [start(shards_url, url, config, *flags, f"--process_index={index}") for index in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    names = storage.open(url).names()
    assert remote_checkpoints.steps(names) == [20]
    assert checkpoint.find(url).name == "20"


@pytest.mark.slow
def test_processes_without_a_shared_folder_are_refused(bucket, shards_url, tmp_path, monkeypatch, start):
    url, config = f"{bucket}/runs/first", small_config(shards_url, steps=20)
    flags, processes = [*with_port(), "--config.mesh.data=2"], []
    for index in range(2):
        monkeypatch.setenv("BERT_FAST_CACHE", str(tmp_path / f"machine {index}"))
        processes.append(start(shards_url, url, config, *flags, f"--process_index={index}"))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "the processes differ in their local folder for the run" in said
        assert "token in it: " in said
        assert "let BERT_FAST_CACHE name a shared place" in said
