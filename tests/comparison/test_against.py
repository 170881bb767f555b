"""`against.py`: a kernel that tells no sample from another of the same distribution."""

import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.comparison import against, draws, measures, one_vector
from ncp_jax.comparison.examples import Examples
from ncp_jax.evaluation.metrics import gaussian_kernel
from ncp_jax.training.ncp.preparation import as_stored

NUM = 200


def encoder(_, x):
    return ncp_jax.Normal(0.6 * x, jnp.full_like(x, 0.8))


def decoder(_, z):
    return ncp_jax.Normal(z, jnp.ones_like(z))


@pytest.mark.parametrize("dim", [20, gaussian_kernel.NUM_COMPONENTS + 100])
def test_draws_of_the_aggregate_posterior_itself_are_not_told_apart(key, dim):
    """x ~ N(0, I), so q(z) = N(0, I) = p(z); many dimensions are projected on axes."""
    vae = ncp_jax.EncoderDecoder(encoder, decoder, None, latent_shape=(dim,))
    model, x = one_vector.of(vae), np.random.default_rng(0).normal(size=(3, NUM, dim))
    examples = Examples(*x.astype(np.float32), as_stored, has_pictures=False)
    encodings = one_vector.encodings(
        *(model, examples.train, examples.valid, as_stored, key),
        num_draws=1,
        num_valid_draws=1,
        batch_size=NUM,
    )
    settings = ncp_jax.ComparisonSettings(num_mmd_samples=NUM)
    held = against.of(model, examples, encodings, key, settings)
    z = draws.draw(encodings.base, key, NUM, NUM)
    found = measures.measure(model, z, held, batch_size=NUM)
    assert abs(found["mmd"].value) < 4 * found["mmd"].stderr
    assert found["mmd_p"].value > 0.01
