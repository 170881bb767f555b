"""`weights_file.py`: arrays come back to the bit, and damage is named."""

import json
import time

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ncp_jax.errors import InputError
from ncp_jax.records import weights_file

TREE = {
    "params": {
        "top": {"kernel": np.array([[0.1, -0.0], [3e38, 1e-45]], np.float32)},
        "bias": np.array(2.5, np.float32),
    },
    "batch_stats": {"mean": np.arange(3, dtype=np.float32)},
}
PATHS = ["batch_stats/mean", "params/bias", "params/top/kernel"]
KNOWN = {
    "step": 20,
    "fingerprint": "0123",
    "held_out_loss": 97.5,
    "config": weights_file.Config(0, {"name": "digits"}, {"num_steps": 20}),
    "data": weights_file.Data(
        "digits", {"train": weights_file.Split(3, [2], "u", "a")}
    ),
    "environment": {"device": "cpu"},
    "seconds": 3.5,
    "licence": "Apache-2.0",
    "command": "python -m ncp_jax",
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "new" / "toy.npz"
    weights_file.write(path, flatten_dict(TREE, sep="/"), KNOWN)
    return path


def edit(path, **fields):
    record = weights_file.beside(path)
    record.write_text(json.dumps(json.loads(record.read_text()) | fields))


def test_arrays_and_record_come_back_to_the_bit(file):
    record, arrays = weights_file.read(file)
    assert list(arrays) == PATHS
    for name, array in flatten_dict(TREE, sep="/").items():
        assert arrays[name].dtype == np.float32
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
    again = unflatten_dict(arrays, sep="/")
    assert again["params"]["top"]["kernel"] is arrays["params/top/kernel"]
    assert flatten_dict(again, sep="/").keys() == arrays.keys()
    assert (record.num_parameters, record.num_bytes) == (5, file.stat().st_size)
    assert record.config == KNOWN["config"] and record.data == KNOWN["data"]
    with np.load(file) as plain:  # NumPy alone reads it
        assert sorted(plain.files) == PATHS


def test_equal_arrays_are_equal_bytes(file, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *unused: time.gmtime(2e9))
    second = tmp_path / "second.npz"
    reordered = dict(reversed(flatten_dict(TREE, sep="/").items()))
    weights_file.write(second, reordered, KNOWN)
    assert second.read_bytes() == file.read_bytes()
    records = [weights_file.beside(path).read_bytes() for path in (second, file)]
    assert records[0] == records[1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_changed_byte_of_the_arrays_is_named(file):
    whole = file.read_bytes()
    for i in range(0, len(whole), 37):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(InputError, match=r"toy\.npz is damaged \(its sha256"):
            weights_file.read(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sha256": 3}, r"toy\.json is not one of ours \(sha256: Expected `str`"),
        ({"step": -1}, "step: Expected `int` >= 0"),
        ({"seconds": float("nan")}, "seconds: Expected `float` >= 0"),
        ({"data": {"name": "x"}}, "data: .*missing required field `splits`"),
        ({"config": {"seed": 0, "data": {}, "vae": []}}, "config.vae: Expected"),
    ],
)
def test_an_edited_record_is_named_with_its_field(file, fields, message):
    edit(file, **fields)
    with pytest.raises(InputError, match=message):
        weights_file.read_record(file)


def test_a_lost_record_is_named(file):
    weights_file.beside(file).unlink()
    with pytest.raises(InputError, match=r"no record toy\.json beside it: bring this"):
        weights_file.read(file)
