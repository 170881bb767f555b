"""`metrics/weights.py`: names, layouts and files of another kind."""

import hashlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import weights


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(2, (3, 1), padding=0, name="layer1_0")(images)
        x = nn.BatchNorm(use_running_average=True, name="bn")(x)
        return nn.Dense(4, name="fc")(x.reshape(len(x), -1))


SHAPE = (5, 1, 3)
STATE = {
    "layer1.0.weight": np.arange(2 * 3 * 3.0).reshape(2, 3, 3, 1),
    "layer1.0.bias": np.array([1.0, 2.0]),
    "bn.weight": np.array([3.0, 4.0]),
    "bn.bias": np.array([5.0, 6.0]),
    "bn.running_mean": np.array([7.0, 8.0]),
    "bn.running_var": np.array([9.0, 10.0]),
    "bn.num_batches_tracked": np.array(3),
    "fc.weight": np.arange(24.0).reshape(4, 6),
    "fc.bias": np.arange(4.0),
}


def test_names_and_layouts_become_linens():
    variables = weights.to_variables(Tiny(), STATE, SHAPE)
    expected = {
        "params": {
            "layer1_0": {
                "kernel": STATE["layer1.0.weight"].transpose(2, 3, 1, 0),
                "bias": STATE["layer1.0.bias"],
            },
            "bn": {"scale": STATE["bn.weight"], "bias": STATE["bn.bias"]},
            "fc": {"kernel": STATE["fc.weight"].T, "bias": STATE["fc.bias"]},
        },
        "batch_stats": {
            "bn": {"mean": STATE["bn.running_mean"], "var": STATE["bn.running_var"]}
        },
    }
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn.bias": None}, "lacks params/bn/bias$"),
        ({"bn2.bias": np.ones(2)}, "has unknown params/bn2/bias$"),
        ({"fc.bias": np.ones(5)}, "has other shapes of params/fc/bias$"),
        (
            {f"x{i}.bias": np.ones(2) for i in range(8)},
            "has unknown .*/x5/bias and 2 more$",
        ),
    ],
)
def test_weights_of_another_network_are_refused(change, message):
    state = {k: v for k, v in {**STATE, **change}.items() if v is not None}
    with pytest.raises(InputError, match=f"another network: the file {message}"):
        weights.to_variables(Tiny(), state, SHAPE)


def test_an_npz_is_read_and_hashed(tmp_path):
    path = tmp_path / "tiny.npz"
    np.savez(path, **STATE)
    state, sha256 = weights.read(path, "")
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert state.keys() == STATE.keys()
    np.testing.assert_array_equal(state["fc.weight"], STATE["fc.weight"])


def test_no_file_is_answered_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"a.npz: no such file. Get one."):
        weights.read(tmp_path / "a.npz", "Get one.")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"text"])
@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_a_damaged_file_is_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"broken{suffix} is no"):
        weights.read(path, "")


def test_one_array_is_no_npz(tmp_path):
    path = tmp_path / "array.npz"
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match=r"array.npz is no npz"):
        weights.read(path, "")
