"""`rng.py`: no two purposes share a key."""

import ast
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax import rng
from ncp_jax.data import datasets
from ncp_jax.evaluation import bounds
from ncp_jax.experiment.setup import wiring
from ncp_jax.models.base import ElboTerms, FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.nvae.layers import Conv
from ncp_jax.priors import ncp_prior
from ncp_jax.priors.group_samplers import SIR, Base, Langevin
from ncp_jax.training import vae_update
from ncp_jax.training.ncp import ncp_state, ncp_update, ncp_validation
from tests import tiny
from tests.oracles import (
    ChainVAE,
    InterleavedVAE,
    LinearGaussianVAE,
    ThreeGroupVAE,
    TwoBlockVAE,
    tilted,
)

PACKAGE = Path(rng.__file__).parent


def stream_calls():
    """(function, owner, name) of every `rng.stream(owner, "name")` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        owners = {}
        for node in ast.walk(tree):  # outer functions come before inner ones
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                outer = owners.get(node, module) if node.name == "__call__" else None
                name = f"{outer or module}.{node.name}"
                owners |= dict.fromkeys(ast.walk(node), name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "rng.stream":
                owner, name = node.args
                if isinstance(name, ast.Constant):
                    yield owners.get(node, module), ast.unparse(owner), name.value


def test_every_name_in_the_package_hashes_out_of_reach_of_counters():
    names = {name for _, _, name in stream_calls()}
    assert len(names) >= 10  # the search finds them
    tags = {zlib.crc32(name.encode()) for name in names}
    assert len(tags) == len(names)
    assert min(tags) >= 2**20


def test_no_function_uses_a_name_twice_under_one_owner():
    used = Counter(stream_calls())
    assert [call for call, count in used.items() if count > 1] == []


def test_the_streams_of_a_training_stage_have_different_names():
    """`wiring` gives one key to the update, the batches, validation and init."""
    for stage in ("training.vae_update", "training.ncp.ncp_update"):
        names = [
            name
            for function, owner, name in stream_calls()
            if function == f"{stage}.make_update" and owner == "key"
        ]
        assert len(names) == 2
        assert not {"batch", "valid", "init", "penalty"} & set(names)


def test_a_name_that_a_counter_could_reach_gets_another_hash(key):
    low = next(n for n in map(str, range(10**6)) if zlib.crc32(n.encode()) < 2**20)
    found, of_hash, next_one = (
        jax.random.key_data(k)
        for k in (
            rng.stream(key, low),
            rng.at_step(key, zlib.crc32(low.encode())),
            rng.stream(key, f"{low}'"),
        )
    )
    assert (found != of_hash).any()
    np.testing.assert_array_equal(found, next_one)


def test_a_counter_is_a_split_and_a_stream_is_not(key):
    split = jax.random.key_data(jax.random.split(key, 1_000))
    counted = jax.random.key_data(jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(3)))
    np.testing.assert_array_equal(counted, split[:3])  # the trap is still there
    for name in ("prepare", "posterior"):
        stream = jax.random.key_data(rng.stream(key, name))
        assert not (split == stream[None]).all(axis=1).any()


def test_root_keeps_seeds_apart():
    keys = [tuple(jax.random.key_data(rng.root(seed)).tolist()) for seed in range(100)]
    assert len(set(keys)) == 100


@pytest.fixture
def uses(monkeypatch):
    """What was made of each key that goes through `jax.random`, as code is traced.

    Lists of "split", "draw", "count" and names, one per key.
    """
    keys, uses = [], defaultdict(list)
    monkeypatch.setattr(rng, "_unrolled", lambda key: key)  # keys are told by identity

    def recording(function, describe):
        def wrapped(key, *args, **kwargs):
            keys.append(key)  # keeps its id taken
            uses[id(key)].append(describe(*args))
            return function(key, *args, **kwargs)

        return wrapped

    def describe_fold(data):
        return f"name {data}" if isinstance(data, int) and data >= 2**20 else "count"

    describe = {"fold_in": describe_fold, "split": lambda *_: "split"}
    for name in ("fold_in", "split", "normal", "bernoulli", "categorical", "bits"):
        function = getattr(jax.random, name)
        wrapped = recording(function, describe.get(name, lambda *_: "draw"))
        monkeypatch.setattr(jax.random, name, wrapped)
    return uses


def assert_one_purpose_per_key(uses, at_least):
    """A key is split, or counted with, or drawn from; and every name comes once."""
    assert sum(map(len, uses.values())) >= at_least
    for used in uses.values():
        once = [use for use in used if use != "count"]
        assert len(once) == len(set(once)), used
        assert len({use for use in used if not use.startswith("name")}) <= 1, used


def noisy(key, stored):
    """A `prepare` that uses its key, once."""
    return stored + jax.random.normal(rng.at_step(key, 0), stored.shape)


DATA = {
    "train": np.zeros((4, 3), np.float32),
    "valid": np.zeros((2, 4, 3), np.float32),
    "valid_mask": np.ones((2, 4), bool),
}


@pytest.mark.parametrize(
    "misuse",
    [
        lambda key: (jax.random.split(key, 3), rng.at_step(key, 1)),
        lambda key: (jax.random.normal(key), jax.random.normal(key)),
        lambda key: (rng.stream(key, "prepare"), rng.stream(key, "prepare")),
        lambda key: (jax.random.normal(key), jax.random.split(key)),
    ],
)
def test_the_record_shows_misuse(uses, key, misuse):
    misuse(key)
    with pytest.raises(AssertionError):
        assert_one_purpose_per_key(uses, at_least=2)


def trace_stage(update, validate, state, data):
    """Traces two updates and one validation."""
    data, indices = jax.tree.map(jnp.asarray, data), jnp.zeros((2, 4), int)
    state, _ = jax.lax.scan(lambda s, i: update(s, data, i), state, indices)
    validate(state, data)


def frozen(module):
    keys = jax.random.key(1), jax.random.key(2)
    return FrozenVAE(module, module.init(keys[0], jnp.zeros((1, 3)), keys[1]))


def test_no_key_of_stage_one_has_two_purposes(key, uses):
    module, x = MLPVAE((3,), 2, (4,), likelihood="normal"), jnp.zeros((1, 3))
    optimizer, init_key = optax.sgd(0.1), rng.stream(key, "penalty")

    def trace():
        variables = frozen(module).variables
        trace_stage(
            vae_update.make_update(module, optimizer, noisy, key),
            vae_update.make_validate(module, noisy, rng.stream(key, "valid")),
            vae_update.init_state(module, variables, optimizer, x, init_key),
            DATA,
        )

    jax.eval_shape(trace)
    # Two steps are traced once: 2 names, 3 counts (noisy's own is one) and 2 draws;
    # validation has 3 names, 2 counts and 2 draws.
    assert_one_purpose_per_key(uses, at_least=7 + 7)


class ConvVAE(nn.Module):
    """So small that it can be traced, with a kernel to be penalised."""

    @nn.compact
    def elbo_terms(self, x, key):
        h = jnp.mean(Conv(2)(x), (1, 2))
        z = h + jax.random.normal(key, h.shape)
        return ElboTerms(-jnp.sum(z**2, 1), h**2)


def test_no_key_of_the_penalty_has_two_purposes(key, uses):
    module, x, penalty = ConvVAE(), jnp.zeros((4, 2, 2, 1)), vae_update.Penalty(1.0)
    optimizer = optax.sgd(0.1)

    def trace():
        variables = module.init(jax.random.key(1), x, key, method="elbo_terms")
        uses.clear()  # a layer's name need not be a key's only use while it is made
        state = vae_update.init_state(
            module, variables, optimizer, x, rng.stream(key, "penalty"), penalty=penalty
        )
        update = vae_update.make_update(module, optimizer, noisy, key, penalty=penalty)
        update(state, {"train": x}, jnp.arange(4))

    jax.eval_shape(trace)
    # Of the state 2 names (one of the stream itself), a count and 2 draws; of the
    # update 2 names, 3 counts and 2 draws.
    assert_one_purpose_per_key(uses, at_least=5 + 7)


def test_no_key_of_training_pictures_has_two_purposes(key, uses):
    """Flips and binarisation share the key of a step."""
    config = tiny.config()
    config.data.horizontal_flips = True
    pictures = np.zeros((4, 8, 8, 1), np.uint8)
    run = wiring.Experiment(config, None, datasets.Dataset(*[pictures] * 3))
    jax.eval_shape(run.prepare_to_train, key, jnp.asarray(pictures))
    assert_one_purpose_per_key(uses, at_least=3)


@pytest.mark.parametrize("module", [TwoBlockVAE(), ThreeGroupVAE(), InterleavedVAE()])
def test_no_key_of_stage_two_has_two_purposes(key, uses, module):
    network, optimizer = MLPDiscriminator((4,)), optax.sgd(0.1)
    draws = {
        "base": Base(),
        "sir": SIR(num_proposals=3, chunk_size=2),
        "langevin": Langevin(step_size=0.1, num_steps=3),
    }

    def trace():
        vae = frozen(module)
        trace_stage(
            ncp_update.make_update(network, optimizer, noisy, key),
            ncp_validation.make_validate(
                network, noisy, rng.stream(key, "valid"), num_passes=2
            ),
            ncp_state.init_state(network, optimizer, vae, rng.stream(key, "init")),
            DATA | {"vae": vae},
        )
        params = ncp_state.init_params(network, vae, rng.stream(key, "other"))
        ncp = ncp_prior.NCPPrior(vae, network, params)
        for name, draw in draws.items():
            ncp_prior.ancestral(ncp, jax.random.split(rng.stream(key, name)), draw)

    jax.eval_shape(trace)
    assert_one_purpose_per_key(uses, at_least=40)


def test_no_key_of_the_likelihood_has_two_purposes(key, uses):
    def trace():
        for ncp, shape in (
            (tilted(LinearGaussianVAE(jnp.eye(3, 2)), [0.5, 0.0]), (2, 3)),
            (ChainVAE(is_split=True).ncp((0.5, 0.5)), (2, 1)),
        ):
            bounds.example_bounds(
                ncp,
                jnp.zeros(shape),
                rng.stream(key, str(shape)),
                num_importance_samples=3,
                num_snis_samples=2,
                num_snis_proposals=3,
                chunk_size=2,
            )

    jax.eval_shape(trace)
    assert_one_purpose_per_key(uses, at_least=24)


def test_streams_are_jaxs_own_to_the_bit():
    """Keys that went through `rng` draw what JAX's draw, whatever is drawn."""
    theirs = jax.random.fold_in(jax.random.key(3), 7)
    ours = rng.at_step(jax.random.key(3), 7)
    assert jax.random.key_impl(ours) != jax.random.key_impl(theirs)  # on CPUs
    draws = {
        "bits": lambda k: jax.random.bits(k, (3, 5)),
        "bytes": lambda k: jax.random.bits(k, (9,), jnp.uint8),
        "nothing": lambda k: jax.random.bits(k, (0,)),
        "scalar": lambda k: jax.random.bits(k),
        "normal": lambda k: jax.random.normal(k, (1_000,)),
        "rows": lambda k: jax.random.randint(k, (1_000,), 0, 60_000),
        "order": lambda k: jax.random.permutation(k, 100),
        "choice": lambda k: jax.random.categorical(k, jnp.zeros((4, 9))),
        "split": lambda k: jax.random.key_data(jax.random.split(k, (2, 3))),
        "largest": lambda k: jax.random.key_data(jax.random.fold_in(k, 2**32 - 1)),
        "chains": lambda k: jax.vmap(jax.random.gumbel)(jax.random.split(k, 4)),
    }
    for name, draw in draws.items():
        for both in (draw, jax.jit(draw)):
            np.testing.assert_array_equal(both(ours), both(theirs), err_msg=name)


def test_another_generator_of_the_users_stays():
    of_user = jax.random.key(0, impl="rbg")
    assert rng.stream(of_user, "any").dtype == of_user.dtype
