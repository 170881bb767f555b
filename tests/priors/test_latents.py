"""`latents.hybrid`: the first groups as given, the others from the base prior.

`walk` and `contrastive_draws` are tested with the contract of VAEs.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.base import FrozenVAE, GroupPrior
from ncp_jax.models.distributions import Normal
from ncp_jax.priors import latents
from tests.oracles import ChainVAE, InterleavedVAE, ThreeGroupVAE
from tests.statistics import assert_mean

hybrid = jax.jit(latents.hybrid)


@pytest.fixture(params=[ThreeGroupVAE, InterleavedVAE])
def frozen(request, key):
    module, x = request.param(), jnp.ones((5, 3))
    return FrozenVAE(module, jax.jit(module.init)(key, x, key))


def test_the_first_groups_are_kept_and_the_others_are_not(frozen, key):
    given = frozen.encode(jnp.ones((5, 3)), key).latents
    groups = [z_k for block in given for z_k in block]
    for j in range(4):
        z, carry = hybrid(frozen, given, j, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(z, given)
        found = [z_k for block in z for z_k in block]
        for k, (new, old) in enumerate(zip(found, groups, strict=True)):
            assert np.mean(np.asarray(new == old)) == float(k < j)
        # The state is that of these z, whoever walks there.
        _, expected = latents.log_prior(frozen, z)
        chex.assert_trees_all_close(carry, expected, rtol=1e-6)
    assert hybrid._cache_size() <= 2  # one program for every j, of each model


@pytest.mark.parametrize("is_split", [False, True])
def test_what_is_drawn_follows_the_prior_given_what_is_kept(is_split, key):
    """z_0 = 3 is kept: z_1 ~ N(0.9 * 3, 0.8^2); or nothing is: z_0 ~ N(0, 1)."""
    vae, n = ChainVAE(is_split=is_split), 40_000
    z_0 = jnp.full((1, n, 1), 3.0)
    given = (z_0, z_0) if is_split else (jnp.concatenate([z_0, z_0]),)
    kept, drawn = np.concatenate(hybrid(vae, given, 1, key)[0])
    assert (kept == 3.0).all()
    assert_mean(drawn, 2.7, 0.8)  # 0.021: 10 % of either constant is more
    assert_mean((drawn - 2.7) ** 2, 0.64, 0.64 * 2**0.5)
    first, second = np.concatenate(hybrid(vae, given, 0, key)[0])
    assert_mean(first, 0.0, 1.0)
    assert_mean(first**2, 1.0, 2**0.5)
    assert_mean(first * second, 0.9, (1.0**2 * 1.45 + 0.9**2) ** 0.5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfOne(ChainVAE):
    """Its base prior is [1, 1] whatever the batch."""

    def prior(self, block, k, carry):
        standard = Normal(jnp.zeros((1, 1)), jnp.ones((1, 1)))
        return GroupPrior(standard, carry[0])


def test_a_base_prior_of_batch_one_is_refused_in_stage_2(key):
    """It was NaN losses and no error."""
    vae, z = OfOne(), jnp.zeros((2, 5, 1))
    for call in (
        lambda: latents.log_prior(vae, (z,)),
        lambda: hybrid(vae, (z,), 1, key),
        lambda: latents.contrastive_draws(vae, jnp.zeros((5, 1)), key),
    ):
        with pytest.raises(InputError, match=r"\.mean .* is \[1, 1\] for a batch of 5"):
            call()
