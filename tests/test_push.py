"""Pushing checkpoints to the Hugging Face Hub, and the metadata of their model cards. The Hub is a stand-in."""

import dataclasses
import json

import huggingface_hub
import numpy as np
import pytest

from bert_fast import BadInput, encoder
from bert_fast.hf import hub as requests
from bert_fast.hf import metadata, push, read
from bert_fast.train import evaluate
from bert_fast.train.description import TaskHead
from helpers.command_line import bert_fast
from helpers.hub_server import TOKEN, Hub
from helpers.made_folders import save_checkpoint, save_theirs, their_model
from helpers.made_shards import WORDS
from helpers.reference import random_params
from test_hf_write import BASE

# huggingface_hub uploads with an argument that its HTTP library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

REPO = "org/mine"
EXPORTED = {
    "README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt",
}  # fmt: skip
GIVEN = metadata.Stated("apache-2.0", ("de", "en"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"), BASE, random_params(BASE), WORDS)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "WAITS", (0, 0, 0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Hub() as server:
        server.use(monkeypatch, tmp_path / "home", TOKEN)
        yield server


def pushed_files(hub, branch="main"):
    repo = hub.repos["model", REPO]
    return repo.commits[repo.branches[branch]]


def test_pushed_model_can_be_imported_again(hub, run, tmp_path):
    done = push.push(run, REPO, given=GIVEN)
    assert pushed_files(hub).keys() == EXPORTED | {".gitattributes"}
    assert (done.changed, done.private, done.export.class_name) == (True, False, "BertForMaskedLM")
    assert done.url.endswith(hub.repos["model", REPO].branches["main"])
    before, after = encoder.load(run), read.read(REPO, lambda line: None)
    np.testing.assert_array_equal(after.params["layers"]["qkv"]["kernel"], before.params["layers"]["qkv"]["kernel"])
    card = pushed_files(hub)["README.md"].decode()
    assert f'AutoModelForMaskedLM.from_pretrained("{REPO}")' in card
    assert "FOLDER" not in card


def test_pushing_the_same_files_again_uploads_nothing(hub, run):
    first = push.push(run, REPO)
    count = len(hub.asked("^PUT|/commit/"))
    second = push.push(run, REPO)
    assert (second.changed, second.url.split("/")[-1]) == (False, first.url.split("/")[-1])
    assert len(hub.asked("^PUT|/commit/")) == count
    third = push.push(run, REPO, given=GIVEN)  # only the card differs
    assert third.changed
    assert len(hub.asked("^PUT")) == 1


def test_revision_is_a_branch_that_is_created(hub, run):
    push.push(run, REPO, given=GIVEN)
    main = pushed_files(hub)
    push.push(run, REPO, revision="small")
    push.push(run, REPO, revision="small")
    assert pushed_files(hub) == main
    assert f'from_pretrained("{REPO}", revision="small")' in pushed_files(hub, "small")["README.md"].decode()


def test_private_repository_stays_private_and_the_private_flag_refuses_a_public_one(hub, run):
    assert push.push(run, REPO, private=True).private
    assert push.push(run, REPO).private
    assert hub.repos["model", REPO].private
    hub.add("org/public", {"a": b""})
    with pytest.raises(BadInput, match="org/public exists already and is public, but --private was given"):
        push.push(run, "org/public", private=True)
    assert hub.repos["model", "org/public"].commits.keys() == {hub.repos["model", "org/public"].branches["main"]}


def test_what_export_refuses_is_not_pushed(hub, tmp_path):
    config = dataclasses.replace(BASE, embed_norm=False)
    save_checkpoint(tmp_path / "run", config, random_params(config), WORDS)
    with pytest.raises(BadInput, match="no Hugging Face layout"):
        push.push(tmp_path / "run", REPO)
    assert not hub.repos


@pytest.mark.parametrize("repo", ["mine", "org/mine@main", "a/b/c", "org/", "https://huggingface.co/org/mine"])
def test_repository_needs_an_owner_and_a_name(hub, run, repo):
    with pytest.raises(BadInput, match="expected ORG/NAME"):
        push.push(run, repo)
    assert not hub.requests


def test_login_is_checked_before_the_export(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadInput, match="the Hub rejected the token"):
        push.push(tmp_path / "nowhere", REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match="you are not logged in: run `hf auth login`, or set HF_TOKEN"):
        push.push(tmp_path / "nowhere", REPO)


def test_error_about_a_token_that_may_not_write_does_not_print_the_token(hub, run, capfd):
    done = bert_fast("push", f"--checkpoint={run}", "--repo=others/mine")
    assert done.returncode == 2
    assert "your token has no permission to do this to others/mine: use a token that may write to others" in done.stderr
    assert TOKEN not in "".join([*done[1:], *capfd.readouterr()])


@pytest.mark.parametrize("request_", ["POST /api/repos/create", "GET /api/models", "POST .*/commit/", "PUT /lfs/"])
@pytest.mark.parametrize("status", [429, 503])
def test_busy_hub_is_asked_again(hub, run, request_, status):
    hub.fail(request_, status, times=2)
    assert push.push(run, REPO).changed
    assert pushed_files(hub).keys() > EXPORTED


def test_upload_that_is_cut_off_is_tried_again_and_changes_nothing_if_it_fails(hub, run):
    hub.fail("PUT /lfs/", 0, times=2)
    push.push(run, REPO)
    assert len(hub.asked("PUT /lfs/")) == 3
    before = pushed_files(hub)
    hub.large.clear()
    hub.fail("PUT /lfs/", 0, times=99)
    with pytest.raises(
        BadInput, match=r"was not pushed to org/mine: .* cannot be reached .* Run the same command again to continue"
    ):
        push.push(run, REPO, given=GIVEN)
    assert pushed_files(hub) == before


def test_card_that_the_hub_refuses_stops_the_push_before_the_upload(hub, run):
    hub.fail("POST /api/validate-yaml", 400)
    with pytest.raises(BadInput, match=r"Invalid metadata in README\.md"):
        push.push(run, REPO)
    assert not hub.asked("PUT|/commit/")


def test_push_says_that_the_hub_cannot_be_reached(hub, run):
    hub.stop()
    with pytest.raises(BadInput, match=rf"was not pushed to org/mine: {hub.url} cannot be reached \(ConnectError\)"):
        push.push(run, REPO)


def test_command_pushes_and_says_what_happened(hub, run):
    args = ["push", f"--checkpoint={run}", f"--repo={REPO}", "--private"]
    done = bert_fast(*args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{REPO}: BertForMaskedLM, private\n")
    assert "the model card states no licence" in done.stdout
    assert f"uploaded: {hub.url}/{REPO}/commit/" in done.stdout
    done = bert_fast(*args, "--license=mit", "--language=de, en")
    assert "licence" not in done.stdout
    assert card_of(pushed_files(hub)["README.md"]).language == ["de", "en"]
    assert (
        "the Hub has the same files already: nothing was uploaded"
        in bert_fast(*args[:3], "--license=mit", "--language=de,en").stdout
    )
    for flag, message in (("--license=Apache", "in lower case"), ("--language=german", "codes of ISO 639")):
        done = bert_fast(*args, flag)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def card_of(content: bytes | str):
    """The metadata of a card, as huggingface_hub reads and checks it."""
    text = content.decode() if isinstance(content, bytes) else content
    return huggingface_hub.ModelCard(text, ignore_metadata_errors=False).data


ROW = {"step": 7, "epoch": 2.5, "train_loss": 0.5, "score": 80.0}


def head(name, kind, **options):
    return TaskHead(name, kind, 2, ("0", "1"), ("a",), 16, options)


@pytest.mark.parametrize(
    ("task", "row", "data", "expected"),
    [
        (
            head("mrpc", "classes"),
            {"accuracy": 81.25, "f1": 70.0},
            "nyu-mll/glue",
            {("validation", "accuracy"): 0.8125, ("validation", "f1"): 0.7},
        ),
        (
            head("mnli", "classes"),
            {"accuracy_matched": 50.0, "accuracy_mismatched": 25.0},
            "nyu-mll/glue",
            {("validation_matched", "accuracy"): 0.5, ("validation_mismatched", "accuracy"): 0.25},
        ),
        (
            head("stsb", "score"),
            {"pearson": 90.0, "spearman": 80.0},
            "nyu-mll/glue",
            {("validation", "pearsonr"): 0.9, ("validation", "spearmanr"): 0.8},
        ),
        (
            head("squad2", "span", version="2.0"),
            {"exact_match": 60.5, "f1": 65.0, "best_f1": 70.0, "best_f1_thresh": -1.0, "HasAns_f1": 1.0},
            "rajpurkar/squad_v2",
            {("validation", "exact_match"): 60.5, ("validation", "f1"): 65.0},
        ),
        (head("own", "classes", train="mine.csv"), {"accuracy": 50.0}, None, {("validation", "accuracy"): 0.5}),
        (head("own", "classes", train="mine.csv"), None, None, {}),
    ],
    ids=["mrpc", "mnli", "stsb", "squad", "own data", "not scored"],
)
def test_metadata_of_a_fine_tuned_model_has_its_data_and_scores(run, task, row, data, expected):
    scored = ({**ROW, **row},) if row else ()
    about = dataclasses.replace(encoder.load(run).about, task=task, scored=scored, init=f"google/bert@{'0' * 40}")
    kind = "ForQuestionAnswering" if task.kind == "span" else "ForSequenceClassification"
    found = card_of(metadata.front(about, f"Bert{kind}", "mine", {}, GIVEN))
    assert (found.library_name, found.license, found.language) == ("transformers", "apache-2.0", ["de", "en"])
    assert found.pipeline_tag == ("question-answering" if task.kind == "span" else "text-classification")
    assert found.base_model == "google/bert"
    assert found.datasets == ([data] if data else None)
    results = found.eval_results or []
    assert {(result.dataset_split, result.metric_type): result.metric_value for result in results} == expected
    assert {result.dataset_type for result in results} <= {data or "mine.csv"}
    assert found.metrics == (sorted({metric for _, metric in expected}) or None)
    assert (found.model_name == "mine") == bool(expected)


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("files:corpus/*.txt", []),
        ("hf:wikimedia/wikipedia/20231101.de:train", ["wikimedia/wikipedia"]),
        ("hf:a/b:train*0.5,files:x.txt,hf:c/d@main/e:train:body", ["a/b", "c/d"]),
        ("hf:./folder:train", []),
    ],
)
def test_metadata_of_a_pre_trained_model_has_its_data_and_held_out_scores(run, source, data, tmp_path):
    about = encoder.load(run).about
    assert about.data is not None
    assert about.eval is not None
    manifest = {"source": source, "fingerprint": "of its text", "vocab": {"sha256": about.vocab.fingerprint}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    about = dataclasses.replace(about, data=dataclasses.replace(about.data, dir=str(tmp_path)), methods=(("mslt", {}),))
    about = dataclasses.replace(about, fingerprint=evaluate.fingerprint(manifest, about.data, about.eval))
    row = {"mlm_loss": 2.0, "mlm_accuracy": 0.5}
    found = card_of(metadata.front(about, "BertForMaskedLM", "mine", row, metadata.Stated()))
    assert found.datasets == (data or None)
    assert found.tags == ["bert", "bert_fast", "mslt"]
    assert (found.license, found.language, found.base_model) == (None, None, None)
    assert {result.metric_type: result.metric_value for result in found.eval_results} == {
        "perplexity": 7.3891, "accuracy": 0.5
    }  # fmt: skip
    assert {(result.task_type, result.dataset_name) for result in found.eval_results} == {("fill-mask", source)}
    for other in ({"fingerprint": "of other text"}, {"vocab": {"sha256": "of another vocabulary"}}):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **other}))
        found = card_of(metadata.front(about, "BertForMaskedLM", "mine", row, metadata.Stated()))
        assert found.datasets is None
        assert {result.dataset_name for result in found.eval_results} == {"held-out text"}


def test_card_of_an_imported_model_names_its_base_model(hub, tmp_path):
    hub.add_folder("google/tiny", save_theirs(tmp_path / "theirs", their_model(heads="Model")))
    read.save(read.read("google/tiny", lambda line: None), tmp_path / "run")
    push.push(tmp_path / "run", REPO)
    text = pushed_files(hub)["README.md"].decode()
    assert (card_of(text).base_model, card_of(text).pipeline_tag) == ("google/tiny", "feature-extraction")
    assert (
        f"imported from the Hugging Face Hub (google/tiny@{hub.repos['model', 'google/tiny'].branches['main']})" in text
    )
