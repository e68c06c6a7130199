"""The tensors of a Hugging Face folder. They are read from safetensors or PyTorch files, whole or sharded, and written
to a safetensors file.
"""

import fnmatch
import json
import pathlib
from collections.abc import Collection, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from bert_fast import BadInput
from bert_fast.hf import torch_file

WHOLE = ("model.safetensors", "pytorch_model.bin")


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name, unchanged. Raises BadInput if files are missing, damaged or of an unsupported kind."""
    for name in WHOLE:
        if (folder / name).is_file():
            return read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_parts(folder / f"{name}.index.json")
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise BadInput(
        f"{folder} has no {' and no '.join(WHOLE)} (found {there}): expected a folder that save_pretrained(DIR) "
        "wrote in PyTorch. Convert TensorFlow and Flax files with transformers 4 (from_tf=True, from_flax=True)"
    )


def needed(there: Collection[str]) -> list[str]:
    """The names of the files that `read` needs. [] if the folder has no tensors. there: the names of all its files."""
    for name in WHOLE:
        if name in there:
            return [name]
        if (index := f"{name}.index.json") in there:
            return [index, *sorted(fnmatch.filter(there, name.replace(".", "-*-of-*.")))]
    return []


def read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{path} cannot be read ({error}): is it complete? Download it again") from error


def read_parts(index: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors in the files that an index lists."""
    try:
        file_of: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        names = sorted(set(file_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{index} cannot be read ({error}): expected a map from tensors to files") from error
    tensors = {}
    for name in names:
        if pathlib.Path(name).name != name or not (index.parent / name).is_file():
            raise BadInput(f"{index} lists {name}, which is not in {index.parent}: download it too")
        tensors |= read_file(index.parent / name)
    if differing := file_of.keys() ^ tensors.keys():
        raise BadInput(f"{index} and its files do not list the same tensors: {', '.join(sorted(differing)[:8])}")
    return tensors


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]):
    """Writes a safetensors file as save_pretrained does. Raises OSError if it cannot be written."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # save_file makes the file readable only by its owner
    except safetensors.SafetensorError as error:  # a full disk also raises it
        raise OSError(str(error)) from error
