"""Files as `torch.save` lays them out, made here without PyTorch."""

import argparse
import collections
import contextlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.nvae import torch_file


class Tensor:
    """Pickles as torch.Tensor does: a strided view of a named storage."""

    def __init__(self, torch, key, storage, offset, size, stride):
        self.torch, self.pid = torch, ("storage", None, key, "cpu", len(storage))
        self.view = offset, size, stride

    def __reduce_ex__(self, protocol):
        storage = StorageRef(self.pid, self.torch.FloatStorage)
        offset, size, stride = self.view
        args = (storage, offset, size, stride, False, collections.OrderedDict())
        return self.torch._utils._rebuild_tensor_v2, args


class StorageRef:
    def __init__(self, pid, kind):
        self.pid = (pid[0], kind, *pid[2:])


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, StorageRef) else None


@pytest.fixture
def torch(monkeypatch):
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    module._utils = utils
    module.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2():
        raise AssertionError("is only named")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return module


def save(path, obj, storages):
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(obj)
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage.tobytes())


def test_tensors_and_flags_come_back(tmp_path, torch):
    storage = np.arange(12, dtype=np.float32)
    state = collections.OrderedDict(
        whole=Tensor(torch, "0", storage, 0, (3, 4), (4, 1)),
        transposed=Tensor(torch, "0", storage, 1, (2, 3), (1, 4)),
        scalar=Tensor(torch, "0", storage, 5, (), ()),
    )
    args = argparse.Namespace(num_nf=2, dataset="mnist")
    save(tmp_path / "c.pt", {"state_dict": state, "args": args}, {"0": storage})
    loaded = torch_file.load(tmp_path / "c.pt")
    assert loaded["args"] == args
    whole = storage.reshape(3, 4)
    np.testing.assert_array_equal(loaded["state_dict"]["whole"], whole)
    np.testing.assert_array_equal(loaded["state_dict"]["transposed"], whole[:, 1:3].T)
    assert loaded["state_dict"]["scalar"] == 5.0


def test_a_tensor_past_its_storage_is_refused(tmp_path, torch):
    storage = np.zeros(3, np.float32)
    save(tmp_path / "c.pt", Tensor(torch, "0", storage, 0, (4,), (1,)), {"0": storage})
    with pytest.raises(InputError, match="damaged"):
        torch_file.load(tmp_path / "c.pt")


def test_other_classes_are_refused(tmp_path):
    save(tmp_path / "c.pt", {"hook": print}, {})
    with pytest.raises(InputError, match=r"builtins__?\.print|__builtin__\.print"):
        torch_file.load(tmp_path / "c.pt")


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=r"no file that torch\.save has written"):
        torch_file.load(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(InputError, match=r"no data\.pkl"):
        torch_file.load(tmp_path / "other.zip")


@pytest.fixture
def legacy(tmp_path):
    """The start of a file of PyTorch 1.5."""
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"...")
    return path


def test_an_old_file_asks_for_pytorch(legacy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if not installed
    with pytest.raises(InputError, match="pip install torch"):
        torch_file.load(legacy)


def test_an_old_file_is_read_by_pytorch_and_runs_nothing(legacy, torch, monkeypatch):
    class FakeTensor:
        def __init__(self, value):
            self.value = value

        def detach(self):
            return self

        def numpy(self):
            return np.asarray(self.value)

    calls = []

    def load(path, **options):
        calls.append((path, options))
        state = collections.OrderedDict(weight=FakeTensor([1.0, 2.0]))
        return {"args": argparse.Namespace(num_nf=1), "state_dict": state, "l": [3]}

    torch.Tensor, torch.load = FakeTensor, load
    torch.serialization = types.SimpleNamespace(
        safe_globals=lambda allowed: contextlib.nullcontext(allowed)
    )
    content = torch_file.load(legacy)
    assert calls == [(legacy, {"map_location": "cpu", "weights_only": True})]
    np.testing.assert_array_equal(content["state_dict"]["weight"], [1.0, 2.0])
    assert content["args"].num_nf == 1 and content["l"] == [3]

    def refuse(path, **options):
        raise pickle.UnpicklingError("Unsupported global: os.system")

    torch.load = refuse
    with pytest.raises(InputError, match=r"old\.pt cannot be read.*os\.system"):
        torch_file.load(legacy)
