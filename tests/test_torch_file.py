"""Files written by torch, read without executing their pickle."""

import os
import pickle

import numpy as np
import pytest

from bert_fast import BadInput
from bert_fast.hf import torch_file

torch = pytest.importorskip("torch")


class Harmful:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
def test_pickle_is_not_executed(how, tmp_path):
    harmful = Harmful()
    harmful.path = str(tmp_path / "made")
    torch.save({"a": torch.zeros(2), "b": harmful}, tmp_path / "pytorch_model.bin", **how)
    with pytest.raises(BadInput, match=r"names (posix|nt)\.mkdir"):
        torch_file.read(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "made").exists()


def test_torch_files_that_are_damaged_or_not_a_state_dict_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model": {"a": torch.zeros(2)}, "step": 3}, path)
    with pytest.raises(BadInput, match="'model' is a dict, expected a tensor"):
        torch_file.read(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(BadInput, match="holds a list"):
        torch_file.read(path)
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for damaged in (whole[:500], whole[:-100], whole.replace(bytes(64), bytes(63) + b"\1", 1), b"", pickle.dumps(1)):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"cannot be read|was not written|without a data\.pkl"):
            torch_file.read(path)


@pytest.mark.parametrize("numbers", [(0, (3, 3), (3, 1)), (9, (1,), (1,)), (-1, (1,), (1,)), (0, (2,), (-1,))])
def test_view_outside_its_storage_is_refused(numbers):
    storage = torch_file.Storage("FloatStorage", "0", 8)
    with pytest.raises(ValueError, match="the view"):
        torch_file.array_of(torch_file.Tensor(storage, *numbers), {"0": bytes(32)})


def test_torch_types_are_read(tmp_path):
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
    state = {str(kind): (torch.arange(6).reshape(2, 3) % 2).to(kind) for kind in kinds}
    state |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "row": torch.arange(12.0).reshape(3, 4)[1:, 2]}
    torch.save(state, tmp_path / "file.bin")
    found = torch_file.read(tmp_path / "file.bin")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert str(tensor.dtype).removeprefix("torch.") == found[name].dtype.name
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.double().numpy())
