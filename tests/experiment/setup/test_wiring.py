"""`wiring.py`: what does not fit together is refused before anything is trained."""

import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets, wiring


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
