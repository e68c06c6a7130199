"""Finds what `--hf` names, a folder or a model on the Hub, and downloads models for the command `pull`."""

import pathlib
import shutil
from collections.abc import Collection
from typing import NamedTuple

from bert_fast import BadInput, command
from bert_fast.data.files import new_folder
from bert_fast.hf import hub, layouts, tokenizer, weights
from bert_fast.hf.hub import HubModel
from bert_fast.train.report import say

EXAMPLE = "google/bert_uncased_L-2_H-128_A-2"
# The files that decide whether the model can be read. They are small, so they come before the weights.
SMALL = (
    "config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip
CARD = "README.md"


class Source(NamedTuple):
    """A Hugging Face folder. hub: NAME@COMMIT if it was downloaded from the Hub, else ""."""

    folder: pathlib.Path
    hub: str


def find(given: str | pathlib.Path) -> Source:
    """The folder `given`, or else the model of that name on the Hub, downloaded to Hugging Face's cache.

    Raises BadInput if there is neither, if the model can be read neither from the Hub nor from the cache, or if it is
    not a model that `read` supports.
    """
    folder = pathlib.Path(given)
    return Source(folder, "") if folder.is_dir() else download(model_of(str(given)))


def model_of(given: str) -> HubModel:
    """The model with this name. Raises BadInput if it cannot be the name of a model on the Hub."""
    model = hub.parse(given)
    if model is None or pathlib.Path(given).exists():
        raise BadInput(
            f"no folder {given}: expected a Hugging Face folder, or the name of a model on the Hub, such as {EXAMPLE} "
            "or NAME@REVISION"
        )
    return model


def download(model: HubModel, with_card: bool = False) -> Source:
    """The files of a model that `read` needs, from the Hub or, if the Hub cannot be reached, from the cache.

    with_card: also its README.md. Raises BadInput as `find` does. If the model on the Hub is not supported, raises
    BadInput before the weights are downloaded.
    """
    try:
        about = hub.attempt(lambda: hub.client().model_info(model.name, revision=model.revision, timeout=hub.TIMEOUT))
        there = {file.rfilename for file in about.siblings or ()}
        check(fetch(model, there & set(SMALL)), model, there)
        folder = fetch(model, {*weights.needed(there), *([CARD] if with_card else [])} & there)
    except hub.failures() as error:
        found = in_cache(model) if hub.is_away(error) else None
        if found is None:
            raise BadInput(
                f"there is no folder {model}, and no model of that name was downloaded: {hub.why(error, model)}"
                + (by_hand(model) if hub.is_away(error) else "")
            ) from error
        say(f"{hub.why(error, model)}. Using the copy in the cache")
        folder = found
    return Source(folder, f"{model.name}@{folder.name}")


def fetch(model: HubModel, names: Collection[str]) -> pathlib.Path:
    """The folder in the cache with these files. Downloads only those that are missing."""
    import huggingface_hub

    return pathlib.Path(
        hub.attempt(
            lambda: huggingface_hub.snapshot_download(model.name, revision=model.revision, allow_patterns=sorted(names))
        )
    )


def in_cache(model: HubModel) -> pathlib.Path | None:
    """The folder of an earlier download in the cache; None if a file that `read` needs is missing."""
    import huggingface_hub

    try:
        name = huggingface_hub.snapshot_download(
            model.name, revision=model.revision, allow_patterns=list(SMALL), local_files_only=True
        )
    except OSError:
        return None
    there = {path.name for path in pathlib.Path(name).iterdir()}
    return pathlib.Path(name) if "config.json" in there and weights.needed(there) else None


def check(folder: pathlib.Path, model: HubModel, there: Collection[str]):
    """Raises BadInput if a model's small files, or the names of its files, show that we cannot read it."""
    if "config.json" not in there or not weights.needed(there):
        raise BadInput(
            f"{model} cannot be read: expected config.json and {' or '.join(weights.WHOLE)}, found "
            f"{', '.join(sorted(there)[:12]) or 'no files'}"
        )
    try:
        layouts.config_from_hf(tokenizer.read_json(folder / "config.json"))
        tokenizer.read(folder)
    except BadInput as error:
        raise BadInput(f"{model} cannot be read: {error}") from error


def by_hand(model: HubModel) -> str:
    """How to get a model onto a machine that cannot reach the Hub."""
    at = "" if model.revision == hub.MAIN else f" --revision {model.revision}"
    return (
        f". By hand: on a machine that can reach the Hub, run `{command()} pull {model} --out=FOLDER` or `hf download "
        f"{model.name}{at} --local-dir FOLDER`, copy FOLDER to this machine, and give --hf=FOLDER"
    )


def pull(given: str, out: str | pathlib.Path) -> Source:
    """Writes a model of the Hub to the Hugging Face folder `out`, with its model card.

    Raises BadInput as `find` does, and if `out` is not empty.
    """
    model = model_of(given)
    with new_folder(pathlib.Path(out)) as part:
        source = download(model, with_card=True)
        there = {path.name for path in source.folder.iterdir()}
        for name in sorted({*SMALL, *weights.needed(there), CARD} & there):
            shutil.copyfile(source.folder / name, part / name)  # follows the cache's links
    return Source(pathlib.Path(out), source.hub)
