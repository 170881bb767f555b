"""`discriminator_choice.py`: one network that reads every group of a VAE."""

import jax
import numpy as np
import pytest

from ncp_jax.models.base import Block
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.discriminator_choice import MixedDiscriminator, discriminator_for
from ncp_jax.models.residual_discriminator import ResidualDiscriminator

VECTOR, MAP = Block(1, (5,), (0,)), Block(2, (4, 4, 3), (4, 4, 6))


@pytest.mark.parametrize(
    ("blocks", "kind"),
    [
        ([VECTOR], MLPDiscriminator),
        ([Block(1, (), (0,))], MLPDiscriminator),
        ([Block(1, (7, 3), (2,))], MLPDiscriminator),
        ([MAP], ResidualDiscriminator),
        ([Block(1, (4, 4, 3), (0,)), MAP], ResidualDiscriminator),
        ([VECTOR, MAP], MixedDiscriminator),
        ([Block(1, (4, 4, 3), (9,))], MLPDiscriminator),  # a context that is no map
        ([Block(1, (4, 4, 3), (8, 8, 2))], MLPDiscriminator),  # nor one of its size
    ],
)
def test_the_kind_follows_the_shapes(blocks, kind):
    assert isinstance(discriminator_for(blocks), kind)


@pytest.mark.parametrize(
    ("side", "blocks"),
    [(1, "AB"), (4, "AB"), (8, "AB"), (16, "ABAB"), (32, "ABABAB"), (128, "ABABAB")],
)
def test_larger_maps_are_halved_more_often(side, blocks):
    sides = [Block(1, (side, side, 2), (0,)), Block(1, (1, 1, 2), (0,))]
    assert discriminator_for(sides).blocks == blocks


MANY = (  # the last two share the shape of their context
    VECTOR,
    Block(1, (4, 4, 3), (0,)),
    Block(1, (4, 4, 3), (5,)),
    MAP,
    Block(1, (2, 2, 3), (2, 2, 6)),
    Block(1, (6,), (2, 2, 6)),
)


@pytest.mark.parametrize("block", MANY)
def test_every_group_has_a_ratio_of_z_and_context(block, key):
    network = discriminator_for(MANY)
    network = network.clone(of_maps=ResidualDiscriminator(4, "A"))
    keys = jax.random.split(key, 4)
    z = jax.random.normal(keys[0], (3, *block.latent_shape))
    context = jax.random.normal(keys[1], (3, *block.context_shape))
    params = network.init(keys[2], z, context)["params"]
    np.testing.assert_array_equal(network.apply({"params": params}, z, context), 0.0)
    generator = np.random.default_rng(0)
    shaken = jax.tree.map(
        lambda leaf: leaf + generator.normal(0, 0.3, leaf.shape).astype(np.float32),
        params,
    )
    apply = jax.jit(network.apply)
    log_r = apply({"params": shaken}, z, context)
    assert log_r.shape == (3,) and np.unique(log_r).size == 3
    assert not np.isclose(apply({"params": shaken}, z + 1.0, context), log_r).any()
    if context.size:
        other = apply({"params": shaken}, z, context[::-1])
        assert not np.isclose(other[0], log_r[0])
