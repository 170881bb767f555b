"""`wiring.py`: what does not fit together is refused before anything is trained."""

import types

import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets, signal, wiring
from tests import tiny


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 2)])
def test_a_likelihood_of_colours_wants_colours(shape):
    """It trained on grey pictures, red for all three, and died in `evaluate`."""
    config = presets.variant(config_lib.default(vae="nvae"), "smoke")
    config.vae.model.likelihood = "logistic_mixture"
    config.data.shape = (32, 32, 3)
    wiring.check_networks(config)
    config.data.update(shape=shape, binarization="none")
    with pytest.raises(InputError, match=r"likelihood = 'logistic_mixture' .* in 3"):
        wiring.check_networks(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("evaluate.audit_groups", (0, 1), r"audit_groups = \(0, 1\): .* groups 0 to 0"),
        ("sample.groups", (1,), r"sample\.groups = \(1,\): .* groups 0 to 0"),
        ("sample.num_readjust_iterations", 3, "of the model 'nvae', not for 'mlp'"),
    ],
)
def test_what_a_model_has_not_is_refused(name, value, message):
    """It was told after both stages were trained."""
    config = presets.variant(config_lib.default(vae="mlp"), "smoke")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(InputError, match=message):
        wiring.check_networks(config)


def test_a_batch_that_devices_cannot_share_is_refused_before_stage_1(
    monkeypatch, tmp_path
):
    """That of stage 2 was told once stage 1 had trained."""
    monkeypatch.setattr(wiring.Experiment, "mesh", types.SimpleNamespace(size=8))
    with pytest.raises(InputError, match=r"config\.ncp\.batch_size = 30 is not a mul"):
        stages.run(tiny.config(ncp={"batch_size": 30}), tmp_path / "run")
    assert not (tmp_path / "run" / "vae").exists()


def test_directions_of_few_examples_are_found_in_batches_of_stage_2(
    monkeypatch, tmp_path
):
    """Which the devices can share; 102 examples on four of them could not be."""
    config = config_lib.default()
    config.ncp.update(batch_size=1_024, directions={"cap": 2, "num_examples": 102})
    run = types.SimpleNamespace(
        config=config,
        dataset=types.SimpleNamespace(train=np.zeros((500, 2))),
        workdir=types.SimpleNamespace(earlier=lambda _: [], fingerprint=lambda _: "a"),
        path=tmp_path,
        prepare=None,
        key=lambda _: rng.root(0),
        mesh=None,
    )
    found = {}
    monkeypatch.setattr(signal.signal, "find", lambda *_, **given: found.update(given))
    monkeypatch.setattr(signal.signal, "kept", lambda _, find: find())
    monkeypatch.setattr(signal.signal, "view", lambda *_: None)
    signal.model(run, None, "b")
    assert found["batch_size"] == 1_024


def test_noise_has_an_example_for_every_pseudo_input():
    """`ncp_jax.load` found other arrays than 20,000 of them had left."""
    config = config_lib.default()
    config.vae.prior = "vamp"
    config.vae.prior_settings.num_components = 20_000
    assert len(wiring.noise_for_data(config).train) == 20_000
