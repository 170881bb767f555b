"""Groups without a direction are not computed; the others do not notice."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncp_jax import parallel
from ncp_jax.models.base import Block
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.signal_space import SignalCoordinates
from ncp_jax.training import optimizers
from ncp_jax.training.ncp import idle_groups, ncp_state, ncp_update, ncp_validation
from ncp_jax.training.ncp.idle_groups import Rows

USED, IDLE = (0, 3), (1, 2)
CHANCE = 2 * math.log(2)
MESH = parallel.mesh_of(jax.local_devices()[:1])
# The older emitters of the other tests round by how many groups there are.
AS_RUNS = {"xla_cpu_use_fusion_emitters": True}


def coordinates(num_directions=3):
    is_used = np.zeros((4, num_directions), np.float32)
    is_used[list(USED)] = 1.0
    return SignalCoordinates(jnp.asarray(is_used), context_size=2)


def as_it_is(key, stored):
    del key
    return stored


def data_of(vae, num, key):
    noise = jax.random.normal(key, (num, *vae.is_used.shape))
    u = (0.5 + 0.7 * noise) * vae.is_used[None]
    mask = jnp.ones((1, num), bool).at[0, -5:].set(False)
    return {"vae": vae, "train": u, "valid": u[None], "valid_mask": mask}


def trained(key, groups, *, num_steps=3, **settings):
    """State of all groups, metrics of the last update and of a validation after it."""
    vae, network = coordinates(), MLPDiscriminator((8,))
    optimizer = optimizers.optimizer("adam", lambda step: 0.05, (0.1, 0.2, 0.3, 0.4))
    data = data_of(vae, 64, key)
    shared = {"groups": groups, "num_negatives": 2, **settings}
    update = ncp_update.make_update(
        network, optimizer, as_it_is, key, ema_decay=0.9, **shared
    )
    validate = ncp_validation.make_validate(network, as_it_is, key, **shared)
    start = ncp_state.init_state(network, optimizer, vae, key, ema_decay=0.9)
    state = ncp_state.place(MESH, start, vae.blocks, groups)
    compiled = functools.partial(jax.jit, compiler_options=AS_RUNS)
    rows, update = jnp.arange(64), compiled(update)
    for _ in range(num_steps):
        state, learned = update(state, data, rows)
    state, measured = compiled(validate)(state, data)
    return ncp_state.collect(vae.blocks, state, groups), learned, measured, start


def of(groups, tree):
    index = np.array(groups)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def assert_same(first, other):
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_the_others_are_the_same_to_the_bit(key):
    """Weights, optimiser, averages and metrics, by all settings that there are."""
    ours, learned, measured, start = trained(key, USED, ranking_weight=0.5)
    theirs, learned_by_all, measured_of_all, _ = trained(key, None, ranking_weight=0.5)
    (stack,), (other,), (first,) = ours.stacks, theirs.stacks, start.stacks
    assert_same(of(USED, stack), of(USED, other))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert type(ours) is type(start)  # so that checkpoints are what they were
    for mine, all_ in ((learned, learned_by_all), (measured, measured_of_all)):
        assert mine.keys() == all_.keys()
        assert_same(of(USED, mine), of(USED, all_))
        for name, values in of(IDLE, mine).items():  # those of r = 1, without a pass
            known = {"loss": CHANCE, "best_loss": CHANCE, "newest_loss": CHANCE}
            expected = known.get(name, 0.5 if name == "accuracy" else 0.0)
            np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert_same(of(IDLE, stack.params), of(IDLE, first.params))  # not even decayed
    np.testing.assert_allclose(of(IDLE, stack.best_loss), CHANCE, rtol=1e-6)
    assert np.abs(of(USED, learned["loss"]) - CHANCE).min() > 1e-3


def test_nobody_may_have_anything_to_read(key):
    """Then the metrics are those of chance, and the weights the first ones."""
    ours, learned, measured, start = trained(key, (), num_steps=1)
    assert_same(ours.stacks[0].params, start.stacks[0].params)
    for metrics in (learned, measured):
        np.testing.assert_allclose(metrics["loss"], [CHANCE] * 4, rtol=1e-6)
        np.testing.assert_array_equal(metrics["gain"], np.zeros(4))


def test_an_update_costs_what_the_others_cost(key):
    """By XLA's own count of operations, side by side: half of four groups, half."""
    vae, network, optimizer = coordinates(8), MLPDiscriminator((64, 64)), optax.sgd(0.1)
    data, flops = data_of(vae, 128, key), {}
    start = ncp_state.init_state(network, optimizer, vae, key)
    for groups in (USED, None):
        update = ncp_update.make_update(
            network, optimizer, as_it_is, key, groups=groups, formulation="vmap"
        )
        state = ncp_state.place(MESH, start, vae.blocks, groups)
        compiled = jax.jit(update).lower(state, data, jnp.arange(128)).compile()
        flops[groups] = compiled.cost_analysis()["flops"]
    assert 0.45 < flops[USED] / flops[None] < 0.6


def test_rows_go_by_the_numbers_of_the_groups():
    """Two stacks: blocks 0 and 2, of groups 0, 1 and 4, and block 1, of 2 and 3."""
    blocks = (Block(2, (3,), (0,)), Block(2, (4,), (0,)), Block(1, (3,), (0,)))
    rows_of = functools.partial(idle_groups.rows_of, blocks)
    assert rows_of() == (Rows((0, 1, 2), ()), Rows((0, 1), ()))
    assert rows_of((1, 4)) == (Rows((1, 2), (0,)), Rows((), (0, 1)))
    first, second = rows_of((1, 3))
    assert (first, second) == (Rows((1,), (0, 2)), Rows((1,), (0,)))
    whole = np.arange(6.0).reshape(3, 2)
    used, idle = idle_groups.used(whole, first), idle_groups.pick(whole, first.idle)
    padded = np.concatenate([used, used])
    np.testing.assert_array_equal(idle_groups.join(padded, idle, first), whole)
