"""The configs of the paper's NVAEs: their sizes, and all stages at smoke size."""

import gzip
import json
import struct
from functools import partial

import numpy as np
import pytest

from ncp_jax.data import cifar
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import architectures, validation
from ncp_jax.experiment.setup import config as config_lib
from tests.data.test_picture_files import encoded, picture, write, write_zip
from tests.experiment.test_stages import CONFIGS, METRICS, load

# Height of the latents of each scale, and how many groups it has.
GROUPS = {
    "mnist_nvae": [(4, 10)],
    "cifar10_nvae": [(16, 30)],
    "celeba64_nvae": [(8, 10), (16, 10), (32, 10)],
    "celebahq256_nvae": [(8, 4), (16, 4), (32, 4), (64, 4), (128, 4)],
    "fashion_nvae": [(4, 2), (8, 2), (16, 2)],
}
PAPERS = tuple(name for name in GROUPS if name != "fashion_nvae")
KEPT = ("likelihood", "padding", "num_preprocess_blocks", "use_se")


def sizes(config):
    """As in `GROUPS`."""
    data = config.data
    module = architectures.build_vae(config.vae.model, data.shape, data.num_bits)
    groups: dict[int, int] = {}
    for block in module.blocks:
        height, width, channels = block.latent_shape
        assert width == height and channels == config.vae.model.latent_channels
        groups[height] = groups.get(height, 0) + block.num_groups
    return list(groups.items())


def test_every_nvae_config_is_here():
    names = {path.stem for path in CONFIGS.glob("*_nvae.py")}
    assert names == GROUPS.keys() == FILES.keys()


@pytest.mark.parametrize("name", GROUPS)
def test_the_groups_are_those_that_are_claimed(name):
    config = load(name, "")
    validation.validate(config)
    assert sizes(config) == GROUPS[name]


@pytest.mark.parametrize("name", PAPERS)
def test_stage_two_and_samplers_are_meant_for_long_runs(name):
    config = load(name, "")
    assert config.ncp.discriminator.name == "mlp" and config.ncp.directions.cap
    assert config.sample.num_proposals == 5_000
    assert config.sample.chunk_size == 0  # what memory takes
    for stage in (config.vae, config.ncp):  # else another program is compiled for it
        assert stage.steps_per_eval % stage.steps_per_dispatch == 0


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_discriminators_are_a_word_away(name):
    """Everything but stage 2 is the same; its blocks are the paper's."""
    here, there = load(name, ""), load(name, "residual")
    validation.validate(there)
    assert there.ncp.discriminator.blocks == "AAABAAAB" and not there.ncp.directions.cap
    assert here.vae == there.vae and here.sample == there.sample
    assert here.data == there.data and here.evaluate == there.evaluate
    small = load(name, "smoke_residual")
    validation.validate(small)
    assert small.ncp.discriminator.name == "residual"
    assert small.ncp.discriminator.channels < there.ncp.discriminator.channels


# Of runs that were begun when the paper's discriminators were the only ones: they can
# still be gone on with.
FINGERPRINTS = {
    "cifar10_nvae": "7bd9e69584135727",
    "celeba64_nvae": "5d802d3110f7fe73",
    "celebahq256_nvae": "963a0aba9ae421dc",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_runs_of_the_papers_discriminators_can_be_gone_on_with(name):
    settings = config_lib.as_json(load(name, "residual"))
    assert config_lib.fingerprint(settings, ("ncp",)) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", GROUPS)
def test_smoke_keeps_what_makes_the_model_special(name):
    full, small = load(name, ""), load(name, "smoke")
    validation.validate(small)
    assert [height for height, _ in sizes(small)] == [h for h, _ in GROUPS[name]]
    assert {k: small.vae.model[k] for k in KEPT} == {k: full.vae.model[k] for k in KEPT}
    assert bool(small.vae.model.num_flows) == bool(full.vae.model.num_flows)
    assert small.vae.penalty_weight == full.vae.penalty_weight > 0
    assert small.data == full.data


# --- all stages, on a few pictures in each data set's own format


def write_mnist(folder, name="mnist"):
    for part, num in (("train", 60), ("t10k", 10)):
        pictures = np.random.default_rng(num).integers(256, size=(num, 28, 28))
        header = struct.pack(">4B3I", 0, 0, 8, 3, num, 28, 28)
        content = gzip.compress(header + pictures.astype(np.uint8).tobytes())
        write(folder, {f"{name}/{part}-images-idx3-ubyte.gz": content})


def write_cifar(folder):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pictures = [picture(32, 32, seed=i) for i in range(cifar.PICTURES_PER_BATCH)]
        planes = [np.asarray(p).transpose(2, 0, 1).tobytes() for p in pictures]
        content = b"".join(b"\3" + plane for plane in planes)
        write(folder, {f"cifar-10-batches-bin/{name}.bin": content})


def write_celeba(folder):
    names = [f"{i:06}.jpg" for i in range(1, 25)]
    faces = {n: encoded(picture(178, 218, seed=i), "JPEG") for i, n in enumerate(names)}
    inside = {f"img_align_celeba/{n}": content for n, content in faces.items()}
    write_zip(folder / "img_align_celeba.zip", inside)
    lines = [f"{n} {(0, 0, 0, 0, 1, 2)[i % 6]}\n" for i, n in enumerate(names)]
    write(folder, {"list_eval_partition.txt": "".join(lines).encode()})


def write_celebahq(folder):
    parts = {"train": 8, "valid": 8}
    faces = {
        f"celeba_hq_256/{part}/{i}.png": encoded(picture(256, 256, seed=i))
        for part, num in parts.items()
        for i in range(num)
    }
    write(folder, faces)


FILES = {
    "mnist_nvae": write_mnist,
    "cifar10_nvae": write_cifar,
    "celeba64_nvae": write_celeba,
    "celebahq256_nvae": write_celebahq,
    "fashion_nvae": partial(write_mnist, name="fashion_mnist"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [*((name, "smoke") for name in GROUPS), ("celeba64_nvae", "smoke_residual")],
)
def test_all_stages_pass(name, variant, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "PICTURES_PER_BATCH", 12)  # not 10,000
    FILES[name](tmp_path / "data")
    config, workdir = load(name, variant), tmp_path / "run"
    config.data.dir = str(tmp_path / "data")
    if name == "cifar10_nvae":  # one of them as it is meant to be, though slowly
        config.vae.model.dtype = config.ncp.discriminator.dtype = "bfloat16"
    stages.run(config, workdir, "all")
    results = json.loads((workdir / "results.json").read_text())
    assert results["run"]["wall_seconds"].keys() == {"vae", "ncp", "sample", "evaluate"}
    metrics = results["metrics"]
    assert {n.partition("/")[0] for n in metrics} >= set(METRICS)
    num_groups = sum(config.vae.model.groups_per_scale)
    assert f"nce_loss/{num_groups - 1}" in metrics
    assert all(np.isfinite(metric["value"]) for metric in metrics.values())
    for sampler in ("base", "sir", "langevin"):
        drawn = np.load(workdir / "samples" / f"{sampler}.npz")["images"]
        assert drawn.shape == (config.sample.num_images, *config.data.shape)
        assert np.isfinite(drawn).all() and drawn.std() > 0
    assert "<html" in (workdir / "report" / "index.html").read_text()
