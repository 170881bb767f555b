"""`metrics/feature_nets.py`: shapes, and the accuracies of real weights."""

import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from ncp_jax.data import cifar, readers
from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import extractor, feature_nets, feature_scores
from ncp_jax.evaluation.metrics.feature_nets import LeNet5

REAL = Path(os.environ.get("NCP_JAX_DATA") or "absent")
NETS = REAL / "feature_nets"
needs_nets = pytest.mark.skipif(
    not NETS.is_dir(), reason="NCP_JAX_DATA has no feature_nets"
)
UNPACK = REAL / "cifar10" / "unpack.py"


def log_probabilities(net, images):
    batches = extractor.outputs(net, images, batch_size=250)
    logits = np.concatenate([batch.logits for batch in batches])
    return scipy.special.log_softmax(logits, axis=1)


def mnist_test(num):
    images = readers.read_idx(readers.find_mnist("mnist", REAL)[1])[:num]
    with gzip.open(REAL / "mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8)[8:][:num]
    return images.reshape(-1, 28, 28, 1), labels


@needs_nets
@pytest.mark.parametrize(
    ("file", "published", "other"),
    [
        ("mnist_lenet5_pyribs", 0.985, LeNet5()),
        ("fidmnist_model_MNIST_LeNet5", 0.988, LeNet5(0.1307, 0.3081)),
    ],
)
def test_a_lenet_is_as_accurate_as_published(file, published, other):
    """Of 1,000 digits; and surer of them than with the other file's preparation."""
    net = feature_nets.load("lenet5", NETS / f"{file}.npz")
    images, labels = mnist_test(1_000)
    log_p = log_probabilities(net, images)
    assert np.mean(log_p.argmax(1) == labels) == pytest.approx(published, abs=0.01)
    others = log_probabilities(dataclasses.replace(net, module=other), images)
    of_labels = (p[np.arange(1_000), labels].mean() for p in (log_p, others))
    assert next(of_labels) > 0.7 * next(of_labels)
    features = extractor.extract(net, images[:3], batch_size=250)
    assert net.label == "FD-LeNet" and features.shape == (3, 84)
    assert features.min() >= 0  # after the ReLU


@pytest.fixture(scope="module")
def cifar_test(tmp_path_factory):
    """CIFAR-10's test pictures and labels, from a folder or unpacked."""
    path = cifar.find(REAL)
    if path is None or path.name != "cifar-10-batches-bin":
        if not UNPACK.is_file():
            pytest.skip("NCP_JAX_DATA has no CIFAR-10 in the binary layout")
        folder = tmp_path_factory.mktemp("cifar")
        subprocess.run([sys.executable, UNPACK, folder], check=True)
        path = folder / "cifar-10-batches-bin"
    rows = np.fromfile(path / "test_batch.bin", np.uint8).reshape(-1, 3073)[:1_000]
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


@needs_nets
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "label"), [("resnet20", "FD-ResNet20"), ("resnet56", "FD-ResNet56")]
)
def test_a_resnet_recognises_the_test_pictures(name, label, cifar_test):
    """Published: 91.6 and 92.7 %.  JPEG copies of the pictures cost it ten points."""
    net = feature_nets.load(name, NETS / f"cifar10_{name}.npz")
    images, labels = cifar_test
    assert np.mean(log_probabilities(net, images).argmax(1) == labels) > 0.79
    features = extractor.extract(net, images[:3], batch_size=250)
    assert net.label == label and features.shape == (3, 64)


@needs_nets
def test_files_of_other_networks_are_refused():
    with pytest.raises(InputError, match=r"another network: .* lacks .*fc1"):
        feature_nets.load("lenet5", NETS / "cifar10_resnet20.npz")
    with pytest.raises(InputError, match=r"another network: .* has unknown .*layer1_3"):
        feature_nets.load("resnet20", NETS / "cifar10_resnet56.npz")


def test_what_is_not_there_is_named(tmp_path):
    names = "inception, lenet5, resnet20, resnet56"
    with pytest.raises(InputError, match=f"network 'lenet': there are {names}"):
        feature_scores.load("lenet", tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x.npz: no such file. Put an npz of lenet5"):
        feature_nets.load("lenet5", tmp_path / "x.npz")
