"""Writes a checkpoint as a Hugging Face folder: the command `export`. Needs no torch."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from bert_fast.bert import Config, Params
from bert_fast.data.files import new_folder
from bert_fast.encoder import Encoder, load
from bert_fast.hf import card, layouts, read, task_card, tensors, tokenizer, verify, weights
from bert_fast.hf.metadata import Stated
from bert_fast.tasks.model import in_label_unit


class Export(NamedTuple):
    """What was written.

    class_name: the transformers class that has the model's heads. notes: what users of the export should know.
    differences: the largest differences from transformers, by output; None if not compared.
    """

    folder: pathlib.Path
    class_name: str
    notes: tuple[str, ...]
    differences: dict[str, float] | None


def export(
    path: str | pathlib.Path,
    out: str | pathlib.Path,
    compare: bool = False,
    initialised_heads: bool = False,
    results: str | pathlib.Path | None = None,
    given: Stated = Stated(),
) -> Export:
    """Writes the checkpoint at `path` (a run folder or one step) to `out`.

    compare: compare the export's outputs in transformers with ours; if they differ, nothing is kept.
    initialised_heads: also write heads that the imported model did not have, which were initialised at random.
    results: a folder with `results.json` files for the model card. None means the run folder or, for a fine-tuned
        model, the folder of its `finetune` call.
    given: what the user states for the model card.

    Raises BadInput if no layout fits the model, `out` is not empty, or transformers computes different outputs.
    """
    if compare:
        verify.needs_torch()
    trained = load(path)
    folder, about = trained.folder, trained.about
    layouts.check(about.model, about.task)
    if results or about.task is None:
        found = card.results_in(pathlib.Path(results) if results else card.run_of(folder))
    else:
        found = task_card.results_of(folder)
    given = given._replace(place=given.place or json.dumps(pathlib.Path(out).absolute().name))
    trained = dataclasses.replace(trained, params=in_label_unit(trained.params, about.task))
    with new_folder(pathlib.Path(out)) as part:
        arrays, config = tensors_of(trained, initialised_heads)
        layout, model = layouts.layout_of(config), trained.model
        has_next = False
        if about.task:
            class_name = layouts.task_architecture(layout, about.task)
        else:
            there = {tensors.full_name(name, layout) for name in arrays}
            has_mlm, has_next = (bool(tensors.names_at(at, config) & there) for at in ("mlm/", "next/next/"))
            class_name = layouts.architecture(layout, has_mlm, has_next)
        notes = notes_of(model, config, has_next)
        dtype = next(array.dtype.name for name, array in arrays.items() if "word_embeddings" in name)
        weights.write(part / "model.safetensors", arrays)
        theirs = layouts.config_to_hf(config, class_name, dtype)
        theirs |= layouts.task_to_hf(about.task) if about.task else {}
        tokenizer.write_json(part / "config.json", theirs)
        tokenizer.write(part, trained.vocab, about.task.seq_len if about.task else config.max_len)
        differences = verify.verify(part, trained, class_name) if compare else None
        page = task_card.card if about.task else card.card
        (part / "README.md").write_text(page(trained, class_name, notes, found, differences, given), encoding="utf-8")
    return Export(pathlib.Path(out), class_name, notes, differences)


def tensors_of(trained: Encoder, initialised_heads: bool) -> tuple[dict[str, np.ndarray], Config]:
    """The tensors to write, and the export's config, in which all layers have equally many heads and neurons.

    Imported tensors keep their names and types.
    """
    params: Params = jax.tree.map(np.asarray, trained.params)
    wide, config = tensors.widen(params, trained.model)
    pad_id = trained.vocab.pad
    task = trained.about.task
    arrays = tensors.to_hf(wide, config, pad_id, task.kind if task else None)
    came = trained.about.imported
    if came is None:
        return arrays, config
    back = read.as_they_came(arrays, config, pad_id, came)
    if initialised_heads and came["initialised"]:
        # In a file with heads, the encoder's tensors need their full names. Otherwise transformers does not find them.
        layout = layouts.layout_of(config)
        back = {tensors.full_name(name, layout): array for name, array in back.items()}
        names = {name for head in came["initialised"] for name in tensors.names_at(read.HEADS[head], config)}
        back |= {name: arrays[name] for name in names}
    return back, config


def notes_of(model: Config, config: Config, has_next: bool) -> tuple[str, ...]:
    """Notes on what may surprise users of the export.

    model: the checkpoint's config. config: the export's config, whose layers may be wider.
    """
    notes, layout = [], layouts.layout_of(config)
    if model.pooler and not has_next:
        of_layout = f"{layouts.CLASSES[layout]} has none, so this model's was left out."
        of_import = "the imported folder had none."
        notes.append("There is no next-sentence head: " + (of_import if layout in layouts.WITH_NEXT else of_layout))
    if (model.heads_L, model.mlp_dim_L) != (config.heads_L, config.mlp_dim_L):
        notes.append(
            f"The model is slim: its layers have {card.ranged(model.heads_L)} attention heads and "
            f"{card.ranged(model.mlp_dim_L)} neurons. transformers has one width for all layers, so they are padded "
            f"with zeros to {config.heads_L[0]} heads and {config.mlp_dim_L[0]:,} neurons. The outputs are equal up to "
            "rounding, but the attention of this export is no smaller and no faster than before pruning."
        )
    if model.dtype != "float32":
        notes.append(f"It was trained with activations in {model.dtype}; the weights are float32.")
    return tuple(notes)
