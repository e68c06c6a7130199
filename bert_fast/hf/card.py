"""The model card of an export, made from the files of its run and the results of its fine-tuning."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bert_fast import BadInput
from bert_fast.bert import Config
from bert_fast.encoder import Encoder
from bert_fast.hf import hub
from bert_fast.hf.metadata import Stated, front, heads_of, manifest_of
from bert_fast.hf.tokenizer import read_json
from bert_fast.train.description import Description
from bert_fast.train.log import clock, read_rows
from bert_fast.train.report import say

LOSSES = {
    "mlm_loss": "masked-LM loss, nats",
    "mask_loss": "masked-LM loss on [MASK] tokens only, nats",
    "mlm_accuracy": "masked-LM accuracy",
    "nsp_loss": "next-sentence loss, nats",
    "nsp_accuracy": "next-sentence accuracy",
}
# The Auto class that loads an export, by the ending of its transformers class.
AUTO = {
    "ForPreTraining": "AutoModelForMaskedLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
OBJECTIVES = {
    "mlm+nsp": "masked LM and next-sentence prediction (BERT)",
    "mlm": "masked LM on full sentences, across documents",
    "mlm_packed": "masked LM on whole documents, each attending only to itself",
}


def run_of(folder: pathlib.Path) -> pathlib.Path:
    """The run folder of a checkpoint; the checkpoint's own folder if it is not in a run."""
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def results_in(folder: pathlib.Path) -> dict[str, dict]:
    """The `results.json` files in and below a folder, by relative path. Raises BadInput if one is not JSON."""
    if not folder.is_dir():
        raise BadInput(f"--results={folder} is not a folder: expected the --workdir of finetune, or a folder above it")
    return {str(path.relative_to(folder).parent): read_json(path) for path in sorted(folder.rglob("results.json"))}


def card(
    trained: Encoder,
    class_name: str,
    notes: Sequence[str],
    results: Mapping[str, dict],
    differences: Mapping[str, float] | None,
    given: Stated,
) -> str:
    """The whole model card, with the metadata that the Hub reads.

    results: the contents of `results.json` files of `finetune`, by folder.
    differences: the largest differences from transformers, by output; None if not compared.
    """
    about, run = trained.about, run_of(trained.folder)
    came, last, title = about.imported, last_rows(trained.about, run), run.absolute().name
    on_hub = came is not None and hub.name_in(came["folder"])
    origin = (
        f"It was imported from the Hugging Face {'Hub' if on_hub else 'folder'} ({came['folder']}) and has not been "
        "trained since. How it was trained before is not recorded."
        if came
        else f"It was pre-trained with bert_fast {about.version}, in JAX."
    )
    if about.init:
        origin += (
            f" Training started from the weights of `{without_folders(about.init)}`. That run is not described here."
        )
    sections = [
        front(about, class_name, title, last.get("valid", {}), given),
        f"# {title}",
        f"A BERT encoder in the layout of `{class_name}`: {shape_of(trained.model, longest(about))}. {origin}",
        use(class_name, differences, given.place),
        "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "",
        "" if came else training(trained, run),
        losses(about, last),
        scores(trained, results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def without_folders(text: str) -> str:
    """A source or path without absolute folders, which may contain a user's name: files:/home/me/*.txt becomes
    files:*.txt.
    """
    last = r"[^/\s]+(?:/checkpoints/\d+)?"
    return re.sub(rf"(?<![\w.~*-])/(?:[^/\s]+/)*?({last})(?=\s|$)", r"\1", text)


def longest(about: Description) -> int:
    """Tokens of the longest examples that the model was trained on; 0 if that is unknown."""
    if about.imported:
        return 0
    return max(stage.program.seq_len for stage in (*about.earlier_stages, about.stage))


def shape_of(model: Config, trained: int = 0) -> str:
    """The model's size as text. trained: how many of its positions were trained; 0 if that is unknown."""
    positions = f"{model.max_len} positions"
    if 0 < trained < model.max_len:
        positions += f" (trained on examples of up to {trained} tokens, so do not use longer ones)"
    heads, hidden = ranged(model.heads_L), ranged(model.mlp_dim_L)
    return (
        f"{model.depth} layers of width {model.width}, {heads} heads of size {model.head_size}, {hidden} MLP neurons, "
        f"{model.norm}-LN, {positions}, {model.vocab_size:,} word pieces"
    )


def ranged(counts_L: tuple[int, ...]) -> str:
    """The count if all are equal, else the smallest and the largest: "8 to 12"."""
    return f"{min(counts_L):,}" if len(set(counts_L)) == 1 else f"{min(counts_L):,} to {max(counts_L):,}"


def use(class_name: str, differences: Mapping[str, float] | None, place: str) -> str:
    auto = AUTO.get(heads_of(class_name), "AutoModel")
    compared = ""
    if differences:
        listed = ", ".join(f"{value:.1e} ({name.replace('_', ' ')})" for name, value in differences.items())
        compared = f"\n\nThe export was compared with the checkpoint in float32. Largest differences: {listed}."
    return (
        f"""```python
# pip install torch transformers
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = {auto}.from_pretrained({place})
```"""
        + compared
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def training(trained: Encoder, run: pathlib.Path) -> str:
    """The section on training: data, methods, cost and stages, up to the step of the checkpoint."""
    about, words, counters = trained.about, trained.vocab, trained.about.counters
    assert about.data is not None
    counts, times, data = counters.counts, counters.times, about.data
    stages = [*about.earlier_stages, about.stage]
    optimizer = read_json(run / "config.json").get("optimizer", {}).get("name")
    casing = "cased" if words.cased else "lower-cased"
    facts = [
        ("data", source_of(about)),
        ("vocabulary", f"{words.size:,} word pieces, {casing}, sha256 {words.fingerprint[:12]}"),
        ("objective", f"{OBJECTIVES[data.objective]}; {data.masked_share:.0%} of the tokens are predicted"),
        ("methods", methods_of(about) or "none: every step ran every layer on every token"),
        ("steps", f"{about.step:,}" + (f", {optimizer}" if optimizer else "")),
        ("examples", f"{counts['examples']:,}, with {counts['tokens_real']:,} tokens, not counting padding"),
        ("FLOPs", f"{counts['flops']:.3g} (forward and backward matrix products that ran)"),
    ]
    if counts["flops_dense"]:
        share = counts["flops"] / counts["flops_dense"]
        facts.append(
            ("FLOPs of dense training", f"{counts['flops_dense']:.3g} for the same examples; this run took {share:.0%}")
        )
    facts.append(("time in train steps", clock(times["seconds"])))
    rows = [
        (
            stage.name,
            f"{steps:,}",
            stage.program.seq_len,
            stage.program.batch_size,
            stage.program.model.depth,
            ranged(stage.program.model.heads_L),
            ranged(stage.program.model.mlp_dim_L),
            f"{stage.schedule.peak:g}",
        )
        for stage, steps in zip(stages, steps_of(about), strict=True)
    ]
    head = ("stage", "steps", "sequence length", "batch size", "layers", "heads", "neurons", "peak learning rate")
    return "\n\n".join(["## Training", table(("", ""), facts), table(head, rows)])


def methods_of(about: Description) -> str:
    """The methods with their arguments; "" if there are none."""
    return "; ".join(
        f"{name} ({', '.join(f'{key}={value}' for key, value in arguments.items() if value != '')})"
        for name, arguments in about.methods
    )


def steps_of(about: Description) -> list[int]:
    """The number of steps of each stage. A method may end a stage before its planned steps."""
    return [end - began for began, end in itertools.pairwise([0, *about.counters.ends, about.step])]


def source_of(about: Description) -> str:
    """The source of the text, from the shards' manifest if they are still there; else the name of the shards folder."""
    manifest = manifest_of(about)
    if "source" not in manifest:
        return f"shards in `{pathlib.Path(about.data.dir).name}`" if about.data else "unknown"
    split = manifest["splits"]["train"]
    return f"`{without_folders(manifest['source'])}`: {split['documents']:,} documents, {split['tokens']:,} tokens"


def last_rows(about: Description, run: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Each split's last row of `metrics.jsonl` up to the step of the checkpoint."""
    return {row["split"]: row for row in read_rows(run / "metrics.jsonl") if row["step"] <= about.step}


def losses(about: Description, last: Mapping[str, Mapping[str, Any]]) -> str:
    """The section on losses, made from `last_rows`."""
    columns = [(name, last[split]) for name, split in (("held-out", "valid"), ("training", "train")) if split in last]
    if not columns:
        return ""
    rows = [
        (what, *(f"{row[key]:.4f}" if key in row else "-" for _, row in columns))
        for key, what in LOSSES.items()
        if any(key in row for _, row in columns)
    ]
    head = ["", *(f"{name}, step {row['step']:,}" for name, row in columns)]
    seq_len = about.eval.seq_len if about.eval else 0
    return (
        f"## Losses\n\n{table(head, rows)}\n\n"
        f"Held-out losses are measured on examples of {seq_len} tokens, with every layer and token active. Compare "
        f"them only with losses on the same examples, whose fingerprint is {about.fingerprint}."
    )


def is_of(trained: Encoder, encoder: Mapping[str, Any]) -> bool:
    """Whether the `encoder` of a `results.json` is this model: the same run name, vocabulary and shape."""
    if encoder.get("random_weights", False) or "checkpoint" not in encoder:
        return False
    run = run_of(pathlib.Path(encoder["checkpoint"]).absolute())
    same = json.loads(json.dumps(dataclasses.asdict(trained.model))) == encoder["model"]
    return same and encoder["vocab"] == trained.vocab.fingerprint and run.name == run_of(trained.folder.absolute()).name


def scores(trained: Encoder, results: Mapping[str, dict]) -> str:
    """The section on scores: the results of this model at the end of fine-tuning, over seeds.

    Leaves out the results of other models, and prints how many there are. Raises BadInput if a file was not written by
    `finetune`.
    """
    rows, others = [], []
    for place, result in results.items():
        try:
            if is_of(trained, result["encoder"]):
                rows += rows_of(result)
            else:
                others.append(place)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{place}/results.json was not written by finetune ({error!r}): move it away") from error
    if others:
        say(f"left out of the model card: {len(others)} results.json of other models (the first is in {others[0]})")
    if not rows:
        return ""
    head = ("task", "mean", "deviation", "median", "seeds", "checkpoint step")
    return f"## Scores\n\nScores on the held-out sets at the end of fine-tuning, over seeds.\n\n{table(head, rows)}"


def rows_of(result: Mapping[str, Any]) -> list[tuple]:
    """One row per task of a `results.json`."""
    rows = []
    for task, numbers in result["tasks"].items():
        score, seeds = numbers["last"]["score"], numbers["learning_rates"][numbers["chosen"]]["seeds"]
        deviation = "-" if score["deviation"] is None else f"{score['deviation']:.2f}"
        step = result["encoder"].get("step", "-")
        rows.append((task, f"{score['mean']:.2f}", deviation, f"{score['median']:.2f}", len(seeds), step))
    return rows
