"""`stacks.py`: which groups share a stack, there and back, and both loops over it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models import stacks
from ncp_jax.models.base import Block
from ncp_jax.models.stacks import Stack

# A, B, A again and A's latents with another context.
BLOCKS = (
    Block(2, (4,), (3,)),
    Block(1, (2, 1), (3,)),
    Block(3, (4,), (3,)),
    Block(1, (4,), (0,)),
)


def numbered(shape=()):
    """Per block a pytree whose leaves tell block and group, as 10 b + k."""

    def of_block(b, block):
        numbers = 10.0 * b + jnp.arange(block.num_groups, dtype=jnp.float32)
        each = numbers.reshape(-1, *[1] * len(shape))
        return {"a": jnp.broadcast_to(each, (block.num_groups, *shape)), "b": -numbers}

    return [of_block(b, block) for b, block in enumerate(BLOCKS)]


def test_blocks_of_equal_shapes_share_a_stack_in_the_order_of_their_first():
    assert stacks.stack_blocks(BLOCKS) == (
        Stack((0, 2), 5, (4,), (3,)),
        Stack((1,), 1, (2, 1), (3,)),
        Stack((3,), 1, (4,), (0,)),
    )


def test_a_stack_leads_with_its_groups_in_the_models_order():
    stacked = stacks.by_stack(BLOCKS, numbered())
    expected = [[0, 1, 20, 21, 22], [10], [30]]
    assert [stack["a"].tolist() for stack in stacked] == expected
    assert [(-stack["b"]).tolist() for stack in stacked] == expected


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_by_block_undoes_by_stack_and_the_other_way_round(shape):
    per_block = numbered(shape)
    per_stack = stacks.by_stack(BLOCKS, per_block)
    back = stacks.by_block(BLOCKS, per_stack)
    chex.assert_trees_all_equal(back, tuple(per_block))
    chex.assert_trees_all_equal(stacks.by_stack(BLOCKS, back), per_stack)


def test_numpy_arrays_are_split_as_they_are():
    """What a checkpoint gives back."""
    per_stack = jax.tree.map(np.asarray, stacks.by_stack(BLOCKS, numbered()))
    back = stacks.by_block(BLOCKS, per_stack)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(back))
    chex.assert_trees_all_equal(back, tuple(numbered()))


def one_group(params, z):
    """Not linear in its arguments, and of several outputs."""
    return {"value": jnp.tanh(z @ params["w"]), "sum": jnp.sum(params["w"]) ** 2}


def stacked_arguments(num_groups):
    keys = jax.random.split(jax.random.key(3))
    w = jax.random.normal(keys[0], (num_groups, 3, 2))
    return {"w": w}, jax.random.normal(keys[1], (num_groups, 5, 3))


@pytest.mark.parametrize("formulation", stacks.FORMULATIONS)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_every_group_gets_what_the_function_gives_it_alone(num_groups, formulation):
    params, z = stacked_arguments(num_groups)
    found = stacks.over_groups(one_group, params, z, formulation=formulation)
    alone = [one_group({"w": w}, z_k) for w, z_k in zip(params["w"], z, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    if num_groups == 1:  # no loop, so not even another rounding
        chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    ("formulation", "loops"),
    [("map", {"scan"}), ("vmap", set()), ("auto", {"scan"})],
)
def test_the_formulation_decides_how_the_groups_are_gone_through(
    formulation, loops, monkeypatch
):
    """ "auto" is "map" on a CPU and "vmap" elsewhere; one group needs neither."""

    def loops_over(num_groups):
        jaxpr = jax.make_jaxpr(
            lambda *args: stacks.over_groups(one_group, *args, formulation=formulation)
        )(*stacked_arguments(num_groups))
        return {str(equation.primitive) for equation in jaxpr.eqns} & {"scan"}

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert loops_over(4) == loops
    assert loops_over(1) == set()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loops_over(4) == loops - ({"scan"} if formulation == "auto" else set())
