"""The weights in `results/pretrained/` fit the code as it stands."""

import jax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ncp_jax.experiment.pretrained import exported, weights_import
from ncp_jax.experiment.setup import architectures, config_files
from ncp_jax.records import weights_file
from ncp_jax.training.checkpoints import fingerprint

CONFIGS = {
    "mnist_mlp": "mnist_mlp",
    "mnist_mlp_1m": "mnist_mlp",
    "mnist_mlp_annealed": "mnist_mlp",
    "mnist_nvae": "mnist_nvae:cpu",
    "mnist_nvae_30k": "mnist_nvae:cpu",
}


def test_each_has_a_config_and_a_place_in_few_bytes():
    assert config_files.weights_names() == [*CONFIGS]
    size = {n: config_files.weights_path(n).stat().st_size for n in CONFIGS}
    assert size["mnist_mlp"] + size["mnist_nvae"] < 6e6  # what one starts from
    of_long_runs = {"mnist_mlp_1m", "mnist_mlp_annealed", "mnist_nvae_30k"}
    assert all(size[name] < 3e6 for name in of_long_runs)  # beside them


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_their_record_and_of_this_code(name):
    path = config_files.weights_path(name)
    record, arrays = weights_file.read(path)  # by its sha256
    assert record.fingerprint == fingerprint(unflatten_dict(arrays, sep="/"))
    config = config_files.load(*CONFIGS[name].partition(":")[::2])
    config.vae.pretrained = name
    config = weights_import.with_its_training(config)
    assert config.vae.num_steps == record.config.vae["num_steps"]
    shape, section = tuple(config.data.shape), config.vae.to_dict()
    module = architectures.build_stage_1(section, shape, config.data.num_bits)
    own = jax.eval_shape(
        lambda: architectures.init_vae(module, shape, jax.random.key(0))
    )
    exported.check_arrays(path, flatten_dict(own, sep="/"), arrays)
