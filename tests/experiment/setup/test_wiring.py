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
