"""`--stage=import`: a reference checkpoint in the place of stage 1."""

import collections

import numpy as np
import pytest
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.experiment import import_stage, stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets
from tests.models.nvae.test_checkpoint import ARGS, random_checkpoint
from tests.models.nvae.test_torch_file import Tensor, save, torch  # noqa: F401 (a fixture)

SMALL = ARGS | {
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_nf": 1,
    "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1,
    "num_preprocess_cells": 1,
    "num_postprocess_cells": 1,
}


@pytest.fixture
def checkpoint(tmp_path, torch):  # noqa: F811
    """A file of a small model of 8x8 pictures, as `torch.save` writes it."""

    def write(seed=0):
        content, storages = random_checkpoint(SMALL, seed), {}
        state = collections.OrderedDict()
        for i, (name, array) in enumerate(content["state_dict"].items()):
            array = np.ascontiguousarray(array)
            storages[str(i)] = array.ravel()
            strides = tuple(step // array.itemsize for step in array.strides)
            state[name] = Tensor(torch, str(i), array.ravel(), 0, array.shape, strides)
        path = tmp_path / "reference.pt"
        save(path, content | {"state_dict": state}, storages)
        return path

    return write


@pytest.fixture
def config(tmp_path):
    """Pictures that fit the model, in a config that has another one."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for i, picture in enumerate(pixels):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "data" / f"{i:03}.png")
    config = presets.variant(config_lib.default(), "smoke")
    config.data.update(
        name="folder",
        dir=str(tmp_path / "data"),
        shape=(8, 8, 3),
        binarization="none",
        cache_dir=str(tmp_path / "cache"),
    )
    config.vae.batch_size = 4
    config.ncp.update(batch_size=4, num_steps=2, steps_per_dispatch=2)
    return config


@pytest.mark.slow
def test_an_imported_model_serves_stage_2(tmp_path, checkpoint, config, capsys):
    config.vae.checkpoint = str(checkpoint())
    workdir = tmp_path / "run"
    stages.run(config, workdir, "import")
    assert "held-out negative ELBO" in capsys.readouterr().out
    stages.run(config, workdir, "import")
    assert "import: complete" in capsys.readouterr().out
    stages.run(config, workdir, "ncp")
    assert "ncp step 2/2" in capsys.readouterr().out
    assert config.vae.model.name == "mlp"  # the caller's config is left as it was
    checkpoint(seed=1)  # another model under the same name
    with pytest.raises(InputError, match=r"another vae\.checkpoint"):
        stages.run(config, workdir, "import")


def test_the_model_is_that_of_the_file(checkpoint, config):
    config.vae.checkpoint = str(checkpoint())
    model = import_stage.with_its_model(config).vae.model
    assert model.name == "nvae" and model.groups_per_scale == (1, 2)
    assert set(model.keys()) == {"name", *config_lib.VAES["nvae"]}
    assert (model.num_flows, model.likelihood, model.white) == (1, "normal", 0.99)


@pytest.mark.parametrize(("field", "value"), [("shape", (16, 16, 3)), ("num_bits", 5)])
def test_other_data_are_refused(checkpoint, config, field, value):
    config.vae.checkpoint = str(checkpoint())
    config.data[field] = value
    with pytest.raises(InputError, match=rf"--config\.data\.{field}="):
        import_stage.with_its_model(config)


@pytest.mark.parametrize(("stage", "name"), [("vae", "file.pt"), ("import", "")])
def test_a_file_and_training_exclude_each_other(tmp_path, config, stage, name):
    config.vae.checkpoint = name
    with pytest.raises(InputError, match="give both or neither"):
        stages.run(config, tmp_path / "run", stage)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named(tmp_path, config):
    config.vae.checkpoint = str(tmp_path / "nowhere.pt")
    with pytest.raises((InputError, OSError), match=r"nowhere\.pt"):
        stages.run(config, tmp_path / "run", "import")
