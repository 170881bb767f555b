"""A linear-Gaussian VAE and its NCP, whose p(x) and p_NCP(x) are exact.

With log r(z) = TILT . z the NCP is N(TILT, I) and log Z = |TILT|^2 / 2, so p_NCP(x) is
normal as well.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracles import LinearGaussianVAE, tilted

VAE = LinearGaussianVAE(jnp.array([[1.0, 0.0], [0.5, 0.0], [0.0, 0.8]]))
TILT = np.array([0.6, -0.5], np.float32)
NCP = tilted(VAE, TILT)
LOG_Z = float(TILT @ TILT) / 2
RELATIVE_VARIANCE = math.exp(2 * LOG_Z) - 1  # of r under p


def draw_x(number):
    """Examples from p_NCP itself."""
    z = jax.random.normal(jax.random.key(1), (number, 2)) + TILT[None]
    return VAE.decode(z).sample(jax.random.key(2))


def as_it_is(key, stored):
    """A `prepare` that changes nothing."""
    del key
    return stored
