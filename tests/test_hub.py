"""Models of the Hugging Face Hub: what is downloaded, what is cached, and the messages if that fails.

The Hub is a stand-in on the loopback interface.
"""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest

from bert_fast import BadInput, encoder
from bert_fast.hf import hub as requests
from bert_fast.hf import pull, read, weights
from helpers.command_line import ROOT, bert_fast
from helpers.hub_server import TOKEN, Hub
from helpers.made_folders import save_theirs, their_model

NAME = "org/tiny"
WANTED = {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return save_theirs(tmp_path_factory.mktemp("theirs"), their_model())


@pytest.fixture
def hub(theirs, tmp_path, monkeypatch):
    """The Hub with one model. Its repository also has files that are not needed."""
    monkeypatch.setattr(requests, "WAITS", (0, 0, 0))
    with Hub() as server:
        server.use(monkeypatch, tmp_path / "home")
        others = {
            "README.md": b"# tiny\n",
            "pytorch_model.bin": b"pickle",
            "onnx/model.onnx": b"x",
            "tf_model.h5": b"x",
        }
        server.add(NAME, others)
        server.add_folder(NAME, theirs)
        yield server


def files_asked(hub):
    return {request.split("/", 5)[-1] for request in hub.asked("^GET .*/resolve/")}


def test_only_the_needed_files_are_downloaded_and_only_once(hub):
    source = pull.find(NAME)
    assert files_asked(hub) == {path.name for path in source.folder.iterdir()} >= WANTED
    assert not files_asked(hub) & {"README.md", "pytorch_model.bin", "onnx/model.onnx", "tf_model.h5"}
    count = len(hub.asked("^GET .*/resolve/"))
    assert pull.find(NAME) == source
    assert len(hub.asked("^GET .*/resolve/")) == count
    assert source.hub == f"{NAME}@{hub.repos['model', NAME].branches['main']}"


def test_folder_comes_before_a_model_of_the_same_name(hub, tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pull.find(NAME).hub == ""
    assert not hub.requests


@pytest.mark.parametrize("name", ["single", NAME])
def test_name_may_lack_an_owner_and_may_end_with_a_revision(hub, theirs, name):
    first = hub.add_folder(name, theirs, branch="old")
    hub.add(name, {"config.json": b"{}"}, branch="main")
    for revision in ("old", first):
        assert pull.find(f"{name}@{revision}").hub == f"{name}@{first}"


@pytest.mark.parametrize("given", ["/a/b", "./a", "a/b/c", "a/b@", "a//b", "~/a", "../a", "a/../b", "-a/b", "a b"])
def test_impossible_name_is_refused_without_a_request(hub, given):
    with pytest.raises(BadInput, match="expected a Hugging Face folder, or the name of a model on the Hub"):
        pull.find(given)
    assert not hub.requests


def test_command_imports_a_model_of_the_hub_and_records_its_commit(hub, theirs, tmp_path):
    done = bert_fast("import", f"--hf={NAME}", f"--out={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    commit = hub.repos["model", NAME].branches["main"]
    run, same = encoder.load(tmp_path / "run"), read.read(theirs)
    assert run.about.imported is not None
    assert run.about.imported["folder"] == f"{NAME}@{commit}"
    assert (run.params["embed"]["word"] == same.params["embed"]["word"]).all()
    assert json.loads((tmp_path / "run/config.json").read_text()) == {"imported": f"{NAME}@{commit}"}


def test_other_process_uses_the_settings_and_the_cache_of_hugging_face(hub, tmp_path):
    command = [sys.executable, "-m", "bert_fast", "pull", NAME, f"--out={tmp_path}/a"]
    environment = hub.environment(tmp_path / "home2")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home2/hub/models--org--tiny").is_dir()
    hub.stop()
    command[-1] = f"--out={tmp_path}/b"
    done = subprocess.run(command, cwd=ROOT, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Using the copy in the cache" in done.stderr
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_weights_in_parts_come_with_their_index(hub, theirs):
    their_model().save_pretrained(folder := theirs.parent / "parts", max_shard_size="20KB")
    shutil.copyfile(theirs / "vocab.txt", folder / "vocab.txt")
    hub.add_folder("org/parts", folder)
    source = pull.find("org/parts")
    assert len(list(source.folder.glob("model-*.safetensors"))) > 1
    assert read.read("org/parts", pytest.fail).hub == source.hub


def test_safetensors_come_before_pytorch_files_and_whole_files_before_parts():
    files = {"pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "model.h5"}
    assert weights.needed(files) == ["model.safetensors.index.json", "model-00001-of-00001.safetensors"]
    assert weights.needed(files | {"model.safetensors"}) == ["model.safetensors"]
    assert weights.needed({"pytorch_model.bin", "model.h5"}) == ["pytorch_model.bin"]
    assert weights.needed({"model.h5"}) == []


def test_model_that_cannot_be_read_is_refused_before_its_weights_are_downloaded(hub, theirs):
    config = json.loads((theirs / "config.json").read_text())
    files = {path.name: path.read_bytes() for path in theirs.iterdir()}
    hub.add("org/other", {**files, "config.json": json.dumps({**config, "model_type": "gpt2"}).encode()})
    hub.add("org/bpe", {**files, "tokenizer_config.json": b'{"tokenizer_class": "RobertaTokenizer"}'})
    hub.add("org/tf", {"config.json": files["config.json"], "tf_model.h5": b""})
    for name, message in (
        ("other", "org/other cannot be read: model_type 'gpt2'"),
        ("bpe", "org/bpe cannot be read: .*RobertaTokenizer"),
        ("tf", "expected config.json and model.safetensors or pytorch_model.bin, found config.json, tf_model.h5"),
    ):
        with pytest.raises(BadInput, match=message):
            pull.find(f"org/{name}")
    assert not hub.asked("safetensors")


@pytest.mark.parametrize(("token", "seen"), [(None, "can be seen without a login"), (TOKEN, "your token can see")])
def test_error_names_the_missing_model_and_what_may_be_wrong(hub, monkeypatch, token, seen):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match=rf"no folder nobody/x, .* no model nobody/x that {seen}: check the name"):
        pull.find("nobody/x")
    with pytest.raises(BadInput, match=r"org/tiny has no branch, tag or commit v9"):
        pull.find(f"{NAME}@v9")


def test_private_model_needs_a_token_which_is_never_printed(hub, theirs, tmp_path, monkeypatch, capfd):
    hub.add_folder("org/secret", theirs, private=True)
    done = bert_fast("pull", "org/secret", f"--out={tmp_path}/out")
    assert (done.returncode, "run `hf auth login`, or set HF_TOKEN" in done.stderr) == (2, True), done.stderr
    (tmp_path / "home/token").parent.mkdir(exist_ok=True)
    (tmp_path / "home/token").write_text(TOKEN)  # where `hf auth login` keeps it
    done = bert_fast("pull", "org/secret", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("HF_TOKEN", wrong := "hf_wrongToken")
    failed = bert_fast("pull", "org/secret", f"--out={tmp_path}/again")
    assert (failed.returncode, "rejected the token" in failed.stderr) == (2, True), failed.stderr
    printed = "".join([*done[1:], *failed[1:], *capfd.readouterr()])
    assert TOKEN not in printed
    assert wrong not in printed


def test_gated_model_says_where_its_terms_are(hub):
    hub.fail("GET /api/models/org/tiny", 403, X_Error_Code="GatedRepo")
    with pytest.raises(BadInput, match=rf"org/tiny is gated: accept its terms on {hub.url}/org/tiny"):
        pull.find(NAME)


@pytest.mark.parametrize("status", [429, 503])
def test_busy_hub_is_asked_again_a_few_times(hub, status, capfd):
    hub.fail("GET /api/models/org/tiny/revision", status, times=2)
    assert pull.find(NAME).hub
    assert capfd.readouterr().err.count(f"the Hub is busy ({status})") == 2
    hub.fail("GET /api/models/org/new", status, times=99)
    with pytest.raises(BadInput, match=f"the Hub answered {status} to 4 attempts"):
        pull.find("org/new")
    assert len(hub.asked("/api/models/org/new")) == 4


def test_download_that_is_cut_off_continues(hub, theirs, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("GET .*/model.safetensors", 0)
    source = pull.find(NAME)
    assert (source.folder / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert len(hub.asked("GET .*/model.safetensors")) == 2


def test_without_the_hub_the_cache_is_used_or_the_error_says_how_to_fetch_by_hand(hub, capfd):
    known = pull.find(NAME)
    hub.stop()
    assert pull.find(NAME) == known
    assert "Using the copy in the cache" in capfd.readouterr().err
    with pytest.raises(BadInput) as error:
        pull.find("org/new@v1")
    for part in (
        "there is no folder org/new@v1", f"{hub.url} cannot be reached", "pull org/new@v1 --out=FOLDER",
        "hf download org/new --revision v1 --local-dir FOLDER", "--hf=FOLDER",
    ):  # fmt: skip
        assert part in str(error.value)
    (known.folder / "vocab.txt").unlink()  # as if the download had been interrupted
    with pytest.raises(BadInput, match="cannot be reached"):
        pull.find(NAME)


def test_offline_mode_sends_no_request(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set, and the model is not in the cache"):
        pull.find(NAME)
    assert not hub.requests


def test_hub_that_does_not_answer_causes_an_error(hub, monkeypatch):
    monkeypatch.setattr(requests, "TIMEOUT", 0.1)
    with hub.lock, pytest.raises(BadInput, match="cannot be reached \\(ReadTimeout\\)"):
        pull.find(NAME)


def test_pull_writes_a_folder_that_import_reads(hub, theirs, tmp_path):
    done = bert_fast("pull", NAME, f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert f"import --hf={tmp_path}/out" in done.stdout
    there = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert there.keys() == {path.name for path in theirs.iterdir()} - {"generation_config.json"} | {"README.md"}
    assert not any(path.is_symlink() for path in there.values())
    assert there["model.safetensors"].read_bytes() == (theirs / "model.safetensors").read_bytes()
    hub.stop()
    assert bert_fast("import", f"--hf={tmp_path}/out", f"--out={tmp_path}/run").returncode == 0
    for arguments, message in (
        ([NAME, f"--out={tmp_path}/out"], "already exists"),
        ([f"--out={tmp_path}/b"], "expected one model"),
        ([NAME], "--out is missing"),
        ([str(theirs), f"--out={tmp_path}/b"], "expected a Hugging Face folder, or the name of a model"),
    ):
        failed = bert_fast("pull", *arguments)
        assert (failed.returncode, message in failed.stderr) == (2, True), failed.stderr
    assert not (tmp_path / "b").exists()
