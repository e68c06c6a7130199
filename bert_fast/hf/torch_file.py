"""Reads the tensors of a file that `torch.save` wrote, without torch and without executing its pickle.

Such a file holds a pickle, and the bytes of the arrays. A pickle can name any function of any module and have it
called. This reader accepts only the names that a table of tensors needs, and maps them to the inert objects below. It
refuses all other names.

    since PyTorch 1.6   a zip archive: NAME/data.pkl, and the bytes of each storage as NAME/data/KEY
    earlier             five pickles in a row: a magic number, the protocol, the system, the table, the storage keys;
                        then, for each key, the number of elements and their bytes
"""

import collections
import io
import pathlib
import pickle
import sys
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

from bert_fast import BadInput

TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # from torch/serialization.py, for files without a zip archive
BROKEN = (
    pickle.UnpicklingError, zipfile.BadZipFile, AttributeError, EOFError, IndexError, KeyError, MemoryError,
    NotImplementedError, OverflowError, RecursionError, TypeError, UnicodeDecodeError, ValueError,
)  # fmt: skip
REMEDY = "if you trust the file, load it in PyTorch and save it with save_pretrained(DIR, safe_serialization=True)"


class Storage(NamedTuple):
    kind: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage. `offset` and `strides` count elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Rebuild:
    """Replaces torch._utils._rebuild_tensor_v2: returns a `Tensor`. Instances have no attributes that a pickle could
    change.
    """

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return Tensor(storage, offset, tuple(shape), tuple(strides))


class Parameter:
    """Replaces torch._utils._rebuild_parameter: returns its tensor."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class Tables(pickle.Unpickler):
    """Unpickles a table of tensors. Raises BadInput if the pickle names anything that such a table does not need."""

    def __init__(self, file, path: pathlib.Path):
        super().__init__(file, encoding="utf-8")
        self.path = path

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): Rebuild(),
            ("torch._utils", "_rebuild_parameter"): Parameter(),
            **{("torch", kind): kind for kind in TYPES},
        }
        if (module, name) not in known:
            raise BadInput(
                f"{self.path} names {module}.{name}. A pickle can run any program, "
                f"so only tables of tensors are read: {REMEDY}"
            )
        return known[module, name]

    def persistent_load(self, pid):
        word, kind, key, _, count, *view = pid
        if word != "storage" or kind not in TYPES or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return Storage(kind, str(key), count)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name. Raises BadInput if the file is damaged, or if it holds or names anything but tensors."""
    try:
        with path.open("rb") as file:
            table, bytes_of = (from_zip if zipfile.is_zipfile(file) else from_pickles)(path, file)
        return {name: array_of(tensor, bytes_of) for name, tensor in table.items()}
    except BROKEN as error:
        raise BadInput(
            f"{path} cannot be read ({type(error).__name__}: {error}): is it complete? Download it again or, {REMEDY}"
        ) from error


def from_zip(path: pathlib.Path, file) -> tuple:
    """The table, and the bytes of each storage."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if name is None:
            raise BadInput(f"{path} is a zip archive without a data.pkl: expected one written by torch.save")
        root = name.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in archive.namelist() else "little"
        check_order(path, order)
        table = Tables(io.BytesIO(archive.read(name)), path).load()
        return table, {key: archive.read(f"{root}data/{key}") for key in item_sizes(path, table)}


def from_pickles(path: pathlib.Path, file) -> tuple:
    """The table, and the bytes of each storage, in the older format without a zip archive."""
    file.seek(0)
    magic, protocol, system, table, keys = (Tables(file, path).load() for _ in range(5))
    if magic != MAGIC or protocol != PROTOCOL:
        raise BadInput(f"{path} was not written by torch.save: {REMEDY}")
    check_order(path, "little" if system["little_endian"] else "big")
    sizes = item_sizes(path, table)
    return table, {key: file.read(int.from_bytes(file.read(8), "little") * sizes[key]) for key in keys}


def item_sizes(path: pathlib.Path, table) -> dict[str, int]:
    """Bytes per element of each storage. Raises BadInput if the table holds anything but tensors."""
    if not isinstance(table, dict):
        raise BadInput(f"{path} holds a {type(table).__name__}, expected tensors by name: {REMEDY}")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise BadInput(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor: only a model's state dict is "
                f"read, not a training state: {REMEDY}"
            )
    storages = [tensor.storage for tensor in table.values()]
    return {storage.key: np.dtype(TYPES[storage.kind]).itemsize for storage in storages}


def check_order(path: pathlib.Path, order: str):
    if order != sys.byteorder:
        raise BadInput(f"{path} has {order}-endian numbers, but this machine is {sys.byteorder}-endian: {REMEDY}")


def array_of(tensor: Tensor, bytes_of: dict[str, bytes]) -> np.ndarray:
    """The array of a view. Raises ValueError if the view reaches outside its storage."""
    flat = np.frombuffer(bytes_of[tensor.storage.key], TYPES[tensor.storage.kind])
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"the view {tensor} has negative numbers")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, flat.dtype)
    if tensor.offset + sum(steps) >= len(flat):
        raise ValueError(f"the view {tensor} reaches outside its {len(flat)} elements")
    strides = [stride * flat.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.array(view, order="C")
