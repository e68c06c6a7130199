"""The model card of a fine-tuned model, from the files of its run: its task, how to use it, and its scores."""

import pathlib
from collections.abc import Mapping, Sequence

from bert_fast import BadInput
from bert_fast.encoder import Encoder
from bert_fast.hf.card import methods_of, run_of, shape_of, table, use, without_folders
from bert_fast.hf.metadata import Stated, front
from bert_fast.hf.tokenizer import read_json
from bert_fast.train.description import TaskHead
from bert_fast.train.log import clock

NO_METRICS = ("step", "epoch", "train_loss")  # keys of a row of `Description.scored` that are not metrics


def results_of(folder: pathlib.Path) -> dict[str, dict]:
    """The `results.json` of the `finetune` call that made a checkpoint, by the call's WORKDIR; {} if there is none."""
    found = read_json((workdir := call_of(folder)) / "results.json")
    return {str(workdir): found} if found else {}


def call_of(folder: pathlib.Path) -> pathlib.Path:
    """The WORKDIR of a checkpoint WORKDIR/TASK/lr=R,seed=S/checkpoints/STEP."""
    return run_of(folder).absolute().parent.parent


def card(
    trained: Encoder,
    class_name: str,
    notes: Sequence[str],
    results: Mapping[str, dict],
    differences: Mapping[str, float] | None,
    given: Stated,
) -> str:
    """The whole model card, with the metadata that the Hub reads. Arguments as in `card.card`."""
    about, task = trained.about, trained.about.task
    assert task is not None
    origin = f"from the weights of `{without_folders(about.init)}`" if about.init else "from random weights"
    notes = [*notes, *limits(task)]
    title = run_of(trained.folder).absolute().parent.name
    data = task.options.get("train", task.name)  # a file of the user's, or a benchmark
    sections = [
        front(about, class_name, title, {}, given),
        f"# {title}",
        f"A BERT model fine-tuned on `{data}`, in the layout of `{class_name}`: {shape_of(trained.model)}. It was "
        f"fine-tuned with bert_fast {about.version}, in JAX, {origin}.",
        *([example(task, given.place)] if task.kind != "span" else []),
        use(class_name, differences, given.place),
        "## Notes\n\n" + "\n".join(f"- {note}" for note in notes),
        training(trained, task),
        scores(trained, task, results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def example(task: TaskHead, place: str) -> str:
    """A code block that calls transformers' pipeline."""
    if task.kind == "tags":
        return f"""```python
from transformers import pipeline

predict = pipeline("token-classification", {place}, aggregation_strategy="first")
predict("...")
```"""
    given = '"..."' if len(task.columns) == 1 else '{"text": "...", "text_pair": "..."}'
    return f"""```python
from transformers import pipeline

predict = pipeline("text-classification", {place})
predict({given}, truncation=True)  # {", ".join(task.columns)}
```"""


def limits(task: TaskHead) -> list[str]:
    """Notes on what a user of the model must know: its maximum length, and its outputs."""
    notes = [
        f"It was fine-tuned on examples of at most {task.seq_len} tokens. With truncation=True the tokenizer cuts "
        "longer ones to that length."
    ]
    if task.kind == "tags":
        notes = [f"It was fine-tuned on examples of at most {task.seq_len} tokens: split longer texts."]
        notes.append("A word's tag is predicted at its first word piece.")
    if task.kind in ("classes", "tags"):
        notes.append(f"Its labels are {', '.join(f'`{label}`' for label in task.labels)}.")
    elif task.kind == "score":
        notes.append("It outputs one number, the raw logit, in the unit of the labels.")
    else:
        stride, version = task.options["stride"], task.options["version"]
        notes.append(f"Longer contexts are read in windows that start {stride} tokens apart.")
        if version == "2.0":
            notes.append("A span that starts and ends at [CLS] means that the context has no answer.")
    return notes


def training(trained: Encoder, task: TaskHead) -> str:
    """The section on fine-tuning: task, settings and time."""
    about, program, run = trained.about, trained.program, run_of(trained.folder)
    scored, result = about.scored, read_json(run / "result.json")
    facts = [
        ("task", f"{task.name}: {', '.join(task.columns)}"),
        ("steps", f"{about.step:,}" + (f", {scored[-1]['epoch']:.3g} epochs" if scored else "")),
        ("batch size", f"{program.batch_size}"),
        ("peak learning rate", f"{about.stage.schedule.peak:g}"),
        ("dropout", f"{trained.model.dropout:g}"),
        ("methods", methods_of(about) or "none"),
        ("seed", str(result.get("seed", "unknown"))),
        ("time in train steps", clock(about.counters.times["seconds"])),
    ]
    return f"## Fine-tuning\n\n{table(('', ''), facts)}"


def scores(trained: Encoder, task: TaskHead, results: Mapping[str, dict]) -> str:
    """The section on scores: the held-out metrics of these weights.

    If the `finetune` call has two or more seeds at this learning rate, the section also has the mean, deviation and
    median over these seeds.
    Raises BadInput if a file was not written by `finetune`.
    """
    about = trained.about
    if not about.scored:
        return ""
    last = about.scored[-1]
    own = {name: last[name] for name in last if name not in NO_METRICS and not name.endswith("_thresh")}
    head, rows, notes = ["", "this model"], [[name, f"{value:.2f}"] for name, value in sorted(own.items())], ""
    if baseline := read_json(run_of(trained.folder) / "result.json").get("baseline"):
        head.append(baseline["prediction"])
        for row in rows:
            row.append(f"{baseline[row[0]]:.2f}")
    for place, result in results.items():
        try:
            if not is_of(trained, task, result):
                continue
            seeds = result["tasks"][task.name]["learning_rates"][f"{about.stage.schedule.peak:g}"]
            if len(seeds["seeds"]) < 2:
                continue
            head += ["mean", "deviation", "median"]
            for row in rows:
                row += [f"{seeds['last'][row[0]][key]:.2f}" for key in ("mean", "deviation", "median")]
            notes = f" Mean, deviation and median are over {len(seeds['seeds'])} seeds, at the end of training."
            break
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{place}/results.json was not written by finetune ({error!r}): move it away") from error
    if read_json(call_of(trained.folder) / "config.json").get("keep") == "best":
        notes += " This step was chosen by its score on the same held-out set, so this model's scores are optimistic."
    unit = ", in percent (rmse: in the unit of the labels)" if "rmse" in own else ", in percent"
    return f"## Scores\n\nOn the held-out set{unit}.{notes}\n\n{table(head, rows)}"


def is_of(trained: Encoder, task: TaskHead, result: Mapping) -> bool:
    """Whether a `results.json` has runs of this model's task, learning rate, encoder and vocabulary."""
    encoder, about = result["encoder"], trained.about
    source = "" if encoder["random_weights"] else encoder.get("checkpoint") or encoder["hf"]
    same = pathlib.Path(source) == pathlib.Path(about.init) and encoder["vocab"] == trained.vocab.fingerprint
    return same and f"{about.stage.schedule.peak:g}" in result["tasks"].get(task.name, {}).get("learning_rates", {})
