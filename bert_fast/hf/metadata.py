"""The metadata of a model card: the YAML block that the Hub reads, with licence, languages, data and scores."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bert_fast import BadInput
from bert_fast.data import fetched
from bert_fast.hf import hub
from bert_fast.hf.tokenizer import read_json
from bert_fast.train import evaluate
from bert_fast.train.description import Description, TaskHead
from bert_fast.train.report import say

# The Hub's pipeline tag, by the ending of the transformers class; all others have "feature-extraction".
PIPELINES = {
    "ForPreTraining": "fill-mask",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# The ids of our metrics in Hugging Face's `evaluate`. Metrics that are not listed here have no id there.
METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "exact_match": "exact_match",
    "precision": "precision",
    "recall": "recall",
}
SQUAD = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}
GLUE = "nyu-mll/glue"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")


class Stated(NamedTuple):
    """Facts about a model that only the user knows.

    place: the arguments with which `from_pretrained` loads the model. If empty, it is the name of the export's folder.
    """

    license: str = ""
    languages: tuple[str, ...] = ()
    place: str = ""


class Score(NamedTuple):
    """A score of the model on a data set.

    metric: the metric's id in `evaluate`. data: the data set's id on the Hub, or another name if it has none.
    """

    metric: str
    value: float
    data: str
    name: str
    config: str | None
    split: str


def stated(license: str, languages: str) -> Stated:
    """The values of --license and --language. Raises BadInput if the Hub would reject them."""
    listed = tuple(language.strip() for language in languages.split(",") if language.strip())
    if license and not LICENSE.fullmatch(license):
        raise BadInput(
            f"--license={license}: expected an identifier of the Hub in lower case, such as apache-2.0, mit, "
            "cc-by-sa-4.0 or other (https://huggingface.co/docs/hub/repositories-licenses)"
        )
    if wrong := [language for language in listed if not LANGUAGE.fullmatch(language)]:
        raise BadInput(f"--language={','.join(wrong)}: expected codes of ISO 639 such as de,en, or multilingual")
    return Stated(license, listed)


def front(about: Description, class_name: str, title: str, losses: Mapping[str, Any], given: Stated) -> str:
    """The metadata as YAML, between two lines of dashes.

    title: the model's name. losses: the last row of `metrics.jsonl` with held-out losses; {} if there is none.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = PIPELINES.get(heads_of(class_name), "feature-extraction")
    scores = task_scores(about.task, about.scored) if about.task else held_out_scores(about, losses)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=score.data,
            dataset_name=score.name,
            dataset_config=score.config,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_value=round(score.value, 4),
        )
        for score in scores
    ]
    found = ModelCardData(
        base_model=hub.name_in((about.imported or {}).get("folder", "") or about.init) or None,
        datasets=data_sets(about) or None,
        language=list(given.languages) or None,
        library_name="transformers",
        license=given.license or None,
        metrics=sorted({score.metric for score in scores}) or None,
        pipeline_tag=task,
        tags=["bert", "bert_fast", *(name for name, _ in about.methods)],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return f"---\n{found.to_yaml()}\n---"


def heads_of(class_name: str) -> str:
    """The ending of a class name, such as ForMaskedLM."""
    return re.sub(r".*(?=For)", "", class_name)


def task_scores(task: TaskHead, scored: tuple[Mapping[str, Any], ...]) -> list[Score]:
    """The last scores of a fine-tuned model: percentages for SQuAD, fractions for other tasks, as in `evaluate`."""
    if not scored:
        return []
    scale = 1 if task.kind == "span" else 100
    found = []
    for key, value in sorted(scored[-1].items()):
        metric, _, part = key.partition("_") if key not in METRICS else (key, "", "")
        if metric in METRICS and part in ("", "matched", "mismatched"):
            data, name, config = data_of(task)
            split = f"validation_{part}" if part else "validation"
            found.append(Score(METRICS[metric], value / scale, data, name, config, split))
    return found


def data_of(task: TaskHead) -> tuple[str, str, str | None]:
    """A task's data set: its id on the Hub (or the name of its file), its display name, and its config."""
    from bert_fast.tasks import glue  # scikit-learn takes a second to import

    if task.name in glue.TASKS:
        return GLUE, f"GLUE {task.name}", task.name
    if task.kind == "span":
        return SQUAD[task.options["version"]], f"SQuAD {task.options['version']}", None
    return task.options["train"], task.options["train"], None


def held_out_scores(about: Description, losses: Mapping[str, Any]) -> list[Score]:
    """The held-out scores of a pre-trained model."""
    if not losses:
        return []
    source = source_in(about) or "held-out text"
    data = next(iter(data_sets(about)), source)
    numbers = {"perplexity": math.exp(min(losses["mlm_loss"], 700)), "accuracy": losses["mlm_accuracy"]}
    return [Score(metric, value, data, source, None, "valid") for metric, value in numbers.items()]


def source_in(about: Description) -> str:
    """The source of the text that a model was pre-trained on, as given to `prepare`; "" if it is not recorded."""
    return manifest_of(about).get("source", "")


def manifest_of(about: Description) -> dict[str, Any]:
    """The manifest of the shards that a model was trained on; {} if they are gone, or if other shards are there now."""
    if about.data is None or not about.data.dir:
        return {}
    manifest = manifest_at(about.data.dir)
    if not manifest or trained_on(manifest, about):
        return manifest
    say(f"the card does not name the source of the text: {about.data.dir} holds other shards than this model's")
    return {}


def trained_on(manifest: Mapping[str, Any], about: Description) -> bool:
    """Whether a model was trained on the shards with this manifest."""
    if manifest.get("vocab", {}).get("sha256") != about.vocab.fingerprint:
        return False
    if about.data is None or about.eval is None or not about.fingerprint:
        return True
    return evaluate.fingerprint(manifest, about.data, about.eval) == about.fingerprint


def manifest_at(place: str) -> dict[str, Any]:
    """The manifest of a shards folder; {} if it is gone, because a card can do without it. Prints a message if a bucket
    no longer has it or cannot be read.
    """
    try:
        return read_json(fetched.manifest(place))
    except BadInput as error:
        say(f"the card does not name the source of the text: {error}")
        return {}


def data_sets(about: Description) -> list[str]:
    """The Hub's ids of the data sets that a model was trained on. Leaves out those without a known id."""
    if about.task:
        data, _, _ = data_of(about.task)
        return [data] if hub.parse(data) and "/" in data else []
    return re.findall(r"\bhf:(\w[\w.-]*/\w[\w.-]*)", source_in(about))
