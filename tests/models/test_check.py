"""Right VAEs pass `check`; every wrong one is named by method, fault and remedy."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, ElboTerms, Encoding, FrozenVAE, GroupPrior
from ncp_jax.models.check import check, check_discriminator
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.distributions import Bernoulli, Normal, sum_non_batch
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from tests.oracles import (
    ChainVAE,
    InterleavedVAE,
    LinearGaussianVAE,
    QuadraticRatio,
    ThreeGroupVAE,
    TwoBlockVAE,
)

ROOT = Path(__file__).parents[2]
X = jnp.zeros((4, 5))


def unit(mean):
    return Normal(mean, jnp.ones_like(mean))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ladder:
    """Two groups [3] that read z_<k [3], then one group [2, 2] without a context."""

    weights: jax.Array
    gains: jax.Array
    is_ready: bool = True

    @property
    def blocks(self):
        return (Block(2, (3,), (3,)), Block(1, (2, 2), (0,)))

    def encode(self, x, key):
        first = unit(x @ self.weights[:, :3])  # [B, 3]
        last = unit((x @ self.weights[:, :4]).reshape(-1, 2, 2))
        keys = jax.random.split(key, 3)
        z = [q.sample(k) for q, k in zip((first, first, last), keys, strict=True)]
        log_q = [q.log_prob(v) for q, v in zip((first, first, last), z, strict=True)]
        return Encoding((jnp.stack(z[:2]), z[2][None]), jnp.stack(log_q, 1))

    def root(self, batch_size):
        return {"z": jnp.zeros((batch_size, 3)), "y": jnp.zeros((batch_size, 2, 2))}

    def prior(self, block, k, carry):
        if block == 0:
            return GroupPrior(unit(carry["z"] * self.gains[k]), carry["z"])
        return GroupPrior(unit(0 * carry["y"]), carry["z"][:, :0])

    def absorb(self, block, k, carry, z_k):
        return (
            {"z": carry["z"] + z_k, "y": carry["y"]}
            if block == 0
            else {
                "z": carry["z"],
                "y": z_k,
            }
        )

    def decode(self, carry):
        return unit(carry["z"] @ self.weights[:, :3].T)


def ladder(kind=Ladder):
    return kind(jnp.ones((5, 4)), jnp.ones(2))


def wrong(**members):
    """A ladder with some members replaced; those that are None are missing."""
    kept = {n: v for n, v in vars(Ladder).items() if n not in members}
    kept = {n: v for n, v in kept.items() if n in ("blocks", *METHODS)}
    members = {n: v for n, v in members.items() if v is not None}
    fields = {"__annotations__": Ladder.__annotations__, "is_ready": True}
    kind = type("Wrong", (), fields | kept | members)
    return ladder(jax.tree_util.register_dataclass(dataclasses.dataclass(kind)))


METHODS = ("encode", "root", "prior", "absorb", "decode")


def frozen(module):
    """With variables that are shapes: no check may need numbers."""
    key, x = jax.random.key(0), jnp.zeros((1, *module.data_shape))
    return FrozenVAE(module, jax.eval_shape(module.init, key, x, key))


def sentences(check_it, *args):
    with pytest.raises(InputError) as caught:
        check_it(*args)
    return str(caught.value).split("\n- ")[1:]


# --- What is right passes.

SMALL_NVAE = NVAE(
    (8, 8, 1), 0, (1, 2), 2, 4, 4, 1, 1, 1, 1, 1, num_flows=1, likelihood="bernoulli"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CalledBack(LinearGaussianVAE):
    """Its densities are computed by somebody else, in NumPy."""

    def decode(self, carry):
        shape = jax.ShapeDtypeStruct((carry.shape[0], 5), jnp.float32)
        return unit(jax.pure_callback(lambda z: z @ np.ones((2, 5)), shape, carry))

    def encode(self, x, key):
        shape = jax.ShapeDtypeStruct((x.shape[0], 2), jnp.float32)
        z = jax.pure_callback(lambda x: x[:, :2], shape, x)
        return Encoding((z[None],), unit(z).log_prob(z)[:, None])


class Mixture(NamedTuple):
    """Two bumps per latent: a base prior that is no normal."""

    means: jax.Array  # [B, 2, 3]

    def sample(self, key):
        pick, noise = jax.random.split(key)
        shape = self.means[:, 0].shape
        which = jax.random.bernoulli(pick, 0.5, shape)
        centre = jnp.where(which, self.means[:, 0], self.means[:, 1])
        return centre + jax.random.normal(noise, shape)

    def log_prob(self, value):
        each = -0.5 * (value[:, None] - self.means) ** 2
        return sum_non_batch(jax.nn.logsumexp(each, 1) - jnp.log(2.0))


def with_mixture(self, block, k, carry):
    if block == 1:
        return Ladder.prior(self, block, k, carry)
    return GroupPrior(Mixture(jnp.stack([carry["z"]] * 2, 1)), carry["z"])


@pytest.mark.parametrize(
    ("vae", "shape"),
    [
        (frozen(MLPVAE((2, 3, 1), 3, (5,))), (2, 3, 1)),
        (frozen(MLPVAE((3,), 2, (5,), likelihood="normal")), (3,)),
        (frozen(TwoBlockVAE()), (3,)),
        (frozen(ThreeGroupVAE()), (3,)),
        (frozen(InterleavedVAE()), (3,)),
        (frozen(SMALL_NVAE), (8, 8, 1)),
        (LinearGaussianVAE(jnp.ones((5, 2))), (5,)),
        (CalledBack(jnp.ones((5, 2))), (5,)),
        (ChainVAE(), (1,)),
        (ChainVAE(is_split=True), (1,)),
        (ladder(), (5,)),
        (wrong(prior=with_mixture), (5,)),
    ],
    ids=lambda v: type(getattr(v, "module", v)).__name__,
)
def test_a_right_vae_passes(vae, shape):
    check(vae, jnp.zeros((4, *shape)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_x_may_have_any_batch_size(batch_size):
    check(ladder(), np.zeros((batch_size, 5)))


def test_the_plug_in_example_of_the_docs_passes():
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    example = re.compile(r"^def normal\(.*?(?=\n```)", re.DOTALL | re.MULTILINE)
    texts = [page.read_text() for page in pages if page.exists()]
    (code,) = [example.search(t)[0] for t in texts if "class TwoScales" in t]
    names = {
        "ElboTerms": ElboTerms,
        "jnp": jnp,
        **{n: globals()[n] for n in ("nn", "jax", "Block", "Encoding", "GroupPrior")},
        **{n: globals()[n] for n in ("Bernoulli", "Normal")},
    }
    exec(code, names)
    module, key, x = names["TwoScales"](), jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    init = functools.partial(module.init, method="elbo_terms")
    vae = FrozenVAE(module, jax.eval_shape(init, key, x, key))
    check(vae, x)
    check_discriminator(vae, ResidualDiscriminator(channels=8, blocks="AB"))


class InNNX(nnx.Module):
    """One group, in Flax's other modules."""

    blocks = (Block(1, (2,), (0,)),)

    def __init__(self, is_training):
        rngs = nnx.Rngs(0)
        self.encoder, self.decoder = (
            nnx.Linear(*sizes, rngs=rngs) for sizes in ((5, 2), (2, 5))
        )
        self.norm = nnx.BatchNorm(5, use_running_average=not is_training, rngs=rngs)

    def encode(self, x, key):
        q = unit(self.encoder(self.norm(x)))
        z = q.sample(key)
        return Encoding((z[None],), q.log_prob(z)[:, None])

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        return GroupPrior(unit(0 * carry), carry[:, :0])

    def absorb(self, block, k, carry, z_k):
        return z_k

    def decode(self, carry):
        return unit(self.decoder(carry))


def test_an_nnx_module_passes_once_it_is_frozen():
    check(InNNX(is_training=False), X)
    found = sentences(check, InNNX(is_training=True), X)
    assert_named(found, [("encode", "changes the model's norm.")])


def test_a_carry_may_start_with_numbers_that_a_scan_widens():
    def absorb(self, block, k, carry, z_k):
        new = Ladder.absorb(self, block, k, carry, z_k)
        return new | {"n": jnp.float32(1) + carry["n"], "i": carry["i"] + 1}

    def root(self, batch_size):
        return Ladder.root(self, batch_size) | {"n": 0, "i": 0}

    vae = wrong(absorb=absorb, root=root)
    x = jnp.zeros((4, 5))
    with jax.numpy_dtype_promotion("standard"):
        draws = jax.eval_shape(latents_of_scan, vae, x, jax.random.key(0))
        check(vae, x)
    assert draws.shape == (4, 3)
    found = sentences(check, vae, X)  # strict promotion, as in all tests
    assert found and all("carry" in s for s in found)


def latents_of_scan(vae, x, key):
    """What the walk through block 0 makes of its carry."""
    z = vae.encode(x, key).latents[0]

    def step(carry, kz):
        return vae.absorb(0, kz[0], carry, kz[1]), None

    return jax.lax.scan(step, vae.root(len(x)), (jnp.arange(2), z))[0]["z"]


def test_shapes_are_enough():
    check(ladder(), jax.ShapeDtypeStruct((4, 5), jnp.float32))


def test_nothing_is_compiled_or_computed():
    def decode(self, carry):
        shape = jax.ShapeDtypeStruct((carry["z"].shape[0], 5), jnp.float32)
        return unit(jax.pure_callback(lambda z: 1 / 0, shape, carry["z"]))

    check(wrong(decode=decode), X)


# --- What is wrong is named. One fault each: where it is, and words of its sentence.


def base(change):
    """A prior whose base of block 0 is changed."""

    def prior(self, block, k, carry):
        right = Ladder.prior(self, block, k, carry)
        return right._replace(base=change(right.base)) if block == 0 else right

    return {"prior": prior}


def context(change):
    def prior(self, block, k, carry):
        right = Ladder.prior(self, block, k, carry)
        return right._replace(context=change(right.context)) if block == 0 else right

    return {"prior": prior}


def encoding(change):
    return {"encode": lambda self, x, key: change(Ladder.encode(self, x, key))}


def latents(change):
    return encoding(lambda e: e._replace(latents=change(*e.latents)))


def log_q(change):
    return encoding(lambda e: e._replace(log_q=change(e.log_q)))


def carry(change):
    """An absorb whose carry is changed after z_k of block 0."""

    def absorb(self, block, k, carry, z_k):
        new = Ladder.absorb(self, block, k, carry, z_k)
        return change(new) if block == 0 else new

    return {"absorb": absorb}


def likelihood(change):
    return {"decode": lambda self, carry: change(Ladder.decode(self, carry))}


def blocks(*declared):
    return {"blocks": declared}


def k_of(take):
    """A prior that uses k as `take` does."""

    def prior(self, block, k, carry):
        right = Ladder.prior(self, block, k, carry)
        gain = take(k)
        return right._replace(base=right.base._replace(std=right.base.std * gain))

    return {"prior": prior}


def by_name(k):
    return {"gain_0": 1.0, "gain_1": 2.0}[f"gain_{k}"]


class NoDensity(NamedTuple):
    mean: jax.Array

    def sample(self, key):
        return self.mean


class Unregistered:
    def __init__(self, normal):
        self.sample, self.log_prob, self.mean = (
            normal.sample,
            normal.log_prob,
            normal.mean,
        )


class Unsummed(Normal):
    def log_prob(self, value):
        return -((value - self.mean) ** 2)


class Scalar(Normal):
    def log_prob(self, value):
        return jnp.sum(super().log_prob(value))


class Lopsided(Normal):
    def sample(self, key):
        return self.mean[:, :1]


class FixedBatch(Normal):
    """It knows its batch size by heart, so it cannot be asked for one example."""

    def sample(self, key):
        return jnp.zeros((7, *self.mean.shape[1:]))


class Keyless(Normal):
    def sample(self):
        return self.mean


class MeanMethod(NamedTuple):
    normal: Normal

    def mean(self):
        return self.normal.mean

    def sample(self, key):
        return self.normal.sample(key)

    def log_prob(self, value):
        return self.normal.log_prob(value)


SEEN: list = []


def keeps_in_a_list(self, block, k, carry, z_k):
    SEEN.append(z_k)
    return Ladder.absorb(self, block, k, carry, z_k)


def keeps_a_function_of_z(self, block, k, carry, z_k):
    SEEN.append(jnp.tanh(z_k))
    return Ladder.absorb(self, block, k, carry, z_k)


def sets_an_attribute(self, block, k, carry, z_k):
    self.last = z_k
    return Ladder.absorb(self, block, k, carry, z_k)


def counts(self, block, k, carry, z_k):
    self.counted.append(1)
    return Ladder.absorb(self, block, k, carry, z_k)


def writes_into_the_carry(self, block, k, carry, z_k):
    new = Ladder.absorb(self, block, k, carry, z_k)
    carry["z"] = new["z"]
    return new


def grows(self, block, k, carry, z_k):
    SEEN.append(1)
    new = Ladder.absorb(self, block, k, carry, z_k)
    return new if len(SEEN) != 2 else {**new, "z": jnp.concatenate([new["z"]] * 2)}


CASES = {
    # members
    **{
        f"no_{name}": ({name: None}, [(name, f"no method `{name}`")])
        for name in METHODS
    },
    "no_blocks": ({"blocks": None}, [("blocks", "has no `blocks`")]),
    "blocks_method": ({"blocks": lambda self: ()}, [("blocks", "make it a property")]),
    "one_block": (
        {"blocks": Block(1, (3,), (0,))},
        [("blocks", "it is one Block")],
    ),
    "blocks_list": ({"blocks": [Block(1, (3,), (0,))]}, [("blocks", "it is a list")]),
    "blocks_empty": (blocks(), [("blocks", "it is empty")]),
    "plain_tuple": (blocks((1, (3,), (0,))), [("blocks[0]", "it is a tuple")]),
    "shape_int": (blocks(Block(1, 3, (0,))), [("blocks[0]", "latent_shape is 3")]),
    "shape_list": (
        blocks(Block(1, [3], (0,))),
        [("blocks[0]", "latent_shape is [3]")],
    ),
    "groups_0": (blocks(Block(0, (3,), (0,))), [("blocks[0]", "num_groups is 0")]),
    "context_scalar_empty": (
        blocks(Block(1, (3,), (4, 0))),
        [("blocks[0]", "context_shape is (4, 0), which is empty")],
    ),
    # encode
    "z_only": (encoding(lambda e: e.latents[0]), [("encode", "z without log_q")]),
    "z_tuple_only": (encoding(lambda e: e.latents), [("encode", "z without log_q")]),
    "latents_array": (latents(lambda a, b: a), [("encode", "put it into a tuple")]),
    "few_blocks": (
        latents(lambda a, b: (a,)),
        [("encode", "latents has 1 arrays where `blocks` has 2")],
    ),
    "no_group_axis": (
        latents(lambda a, b: (a, b[0])),
        [("encode", "latents[1] is float32[B, 2, 2], without a group axis")],
    ),
    "batch_first": (
        latents(lambda a, b: (a.swapaxes(0, 1), b)),
        [("encode", "latents[0] is float32[B, 2, 3], the batch before the groups")],
    ),
    "wrong_latent_shape": (
        latents(lambda a, b: (a, b.reshape(1, -1, 4))),
        [("encode", "latents[1] is float32[1, B, 4], of another latent_shape")],
    ),
    "wrong_num_groups": (
        latents(lambda a, b: (a[:1], b)),
        [("encode", "latents[0] is float32[1, B, 3], 1 groups")],
    ),
    "integer_latents": (
        latents(lambda a, b: (a.astype(jnp.int32), b)),
        [("encode", "latents[0] is int32[2, B, 3]")],
    ),
    "log_q_summed": (
        log_q(lambda v: v.sum(1)),
        [("encode", "log_q is float32[B]; expected float32[B, 3]")],
    ),
    "log_q_transposed": (log_q(lambda v: v.T), [("encode", "; transpose it")]),
    "log_q_dtype": (
        log_q(lambda v: v.astype(jnp.bfloat16)),
        [("encode", "log_q is bfloat16[B, 3]; expected float32")],
    ),
    "log_q_none": (log_q(lambda v: None), [("encode", "log_q is a NoneType")]),
    "encode_raises": (
        {"encode": lambda self, x, key: x @ jnp.ones((4, 2))},
        [("encode", "it raises TypeError: dot_general")],
    ),
    "fixed_batch": (
        {"encode": lambda self, x, key: Ladder.encode(self, x.reshape(4, 5), key)},
        [("encode", "it raises TypeError: cannot reshape")],
    ),
    # root
    "root_text": (
        {"root": lambda self, batch_size: {"z": "zeros"}},
        [("root", "leaf ['z'] of the carry is a str")],
    ),
    "root_none": (
        {"root": lambda self, batch_size: None},
        [("root", "it returns None")],
    ),
    "root_none_given": (
        {"root": lambda self: ()},
        [("root", "it raises TypeError")],
    ),
    # prior
    "bare": (
        {"prior": lambda self, b, k, c: Ladder.prior(self, b, k, c).base},
        [
            ("prior of block 0", "it returns a Normal, a distribution without its"),
            ("prior of block 1", "it returns a Normal, a distribution without its"),
        ],
    ),
    "prior_none": (
        {"prior": lambda self, b, k, c: None},
        [("prior of block 0", "a NoneType"), ("prior of block 1", "a NoneType")],
    ),
    "context_none": (
        context(lambda c: None),
        [("prior of block 0", "the context is None")],
    ),
    "context_shape": (
        context(lambda c: c[:, :2]),
        [("prior of block 0", "context is float32[B, 2]; expected an array [B, 3]")],
    ),
    "context_unbatched": (
        context(lambda c: c[0]),
        [("prior of block 0", "context is float32[3], without a batch axis")],
    ),
    "declared_empty": (
        blocks(Block(2, (3,), (0,)), Block(1, (2, 2), (0,))),
        [("prior of block 0", "context is float32[B, 3]; expected an array [B, 0]")],
    ),
    "declared_scalar": (
        blocks(Block(2, (3,), (3,)), Block(1, (2, 2), ())),
        [("prior of block 1", "context is float32[B, 0]; expected an array [B]")],
    ),
    "base_unbatched": (
        base(lambda n: Normal(n.mean[0], n.std[0])),
        [
            ("prior of block 0", ".mean of the base prior is float32[3], without a"),
            ("prior of block 0", ".std of the base prior is float32[3], without a"),
        ],
    ),
    "base_batch_1": (
        base(lambda n: Normal(n.mean[:1], n.std[:1])),
        [
            (
                "prior of block 0",
                ".mean of the base prior is float32[1, 3], of batch 1",
            ),
            ("prior of block 0", ".std of the base prior is float32[1, 3], of batch 1"),
        ],
    ),
    "base_scalar_std": (
        base(lambda n: Normal(n.mean, 1.0)),
        [("prior of block 0", ".std of the base prior is a scalar")],
    ),
    "base_text": (
        base(lambda n: Normal(n.mean, "1")),
        [("prior of block 0", ".std of the base prior is a str")],
    ),
    "base_no_density": (
        base(lambda n: NoDensity(n.mean)),
        [("prior of block 0", "a NoDensity, has no log_prob")],
    ),
    "base_array": (
        base(lambda n: n.mean),
        [("prior of block 0", "has no sample and no log_prob")],
    ),
    "base_no_pytree": (
        base(Unregistered),
        [("prior of block 0", "a Unregistered, is no pytree")],
    ),
    "base_unsummed": (
        base(lambda n: Unsummed(*n)),
        [("prior of block 0, log_prob", "float32[B, 3]; expected float32[B]")],
    ),
    "base_total": (
        base(lambda n: Scalar(*n)),
        [("prior of block 0, log_prob", "keep the batch axis")],
    ),
    "base_sample_shape": (
        base(lambda n: Lopsided(*n)),
        [("prior of block 0, sample", "float32[B, 1]; expected float32[B, 3]")],
    ),
    "base_fixed_batch": (
        base(lambda n: FixedBatch(*n)),
        [("prior of block 0, sample of each example twice", "expected float32[14, 3]")],
    ),
    "base_keyless": (
        base(lambda n: Keyless(*n)),
        [("prior of block 0, sample", "it raises TypeError")],
    ),
    "k_index": (
        k_of(lambda k: [1.0, 2.0][k]),
        [
            ("prior of block 0", "uses k as a Python index"),
            ("prior of block 1", "uses k as a Python index"),
        ],
    ),
    "k_int": (
        k_of(lambda k: float(k)),
        [
            ("prior of block 0", "uses k as a Python index or int"),
            ("prior of block 1", "uses k as a Python index or int"),
        ],
    ),
    "k_in_f_string": (
        k_of(by_name),
        [
            ("prior of block 0", "writes k into a string"),
            ("prior of block 1", "writes k into a string"),
        ],
    ),
    "k_in_if": (
        k_of(lambda k: 1.0 if k == 0 else 2.0),
        [
            ("prior of block 0", "asks for k in an `if`"),
            ("prior of block 1", "asks for k in an `if`"),
        ],
    ),
    "k_in_absorb": (
        {"absorb": lambda s, b, k, c, z: [Ladder.absorb][k](s, b, k, c, z)},
        [
            ("absorb of block 0", "uses k as a Python index"),
            ("absorb of block 1", "uses k as a Python index"),
        ],
    ),
    # absorb
    "carry_shape": (
        carry(lambda c: {**c, "z": jnp.concatenate([c["z"]] * 2, 1)}),
        [("absorb of block 0", "leaf ['z'] of the carry is float32[B, 3] before and")],
    ),
    "carry_dtype": (
        carry(lambda c: {**c, "z": c["z"].astype(jnp.bfloat16)}),
        [("absorb of block 0", "float32[B, 3] before and bfloat16[B, 3] after")],
    ),
    "carry_structure": (
        carry(lambda c: {**c, "more": c["z"]}),
        [("absorb of block 0", "the carry changes its structure")],
    ),
    "carry_none": (
        carry(lambda c: None),
        [("absorb of block 0", "the carry changes its structure")],
    ),
    "carry_text": (
        carry(lambda c: {**c, "z": "z"}),
        [("absorb of block 0", "leaf ['z'] of the carry is a str")],
    ),
    "keeps_z": (
        {"absorb": keeps_in_a_list},
        [
            ("absorb of block 0", "keeps a traced array"),
            ("absorb of block 1", "keeps a traced array"),
        ],
    ),
    "keeps_a_function_of_z": (
        {"absorb": keeps_a_function_of_z},
        [
            ("absorb of block 0", "keeps a traced array"),
            ("absorb of block 1", "keeps a traced array"),
        ],
    ),
    "sets_an_attribute": (
        {"absorb": sets_an_attribute},
        [
            ("absorb of block 0", "changes the model's last (a side effect)"),
            ("absorb of block 1", "changes the model's last (a side effect)"),
        ],
    ),
    "counts_in_a_list": (
        {"absorb": counts, "counted": []},
        [
            ("absorb of block 0", "changes the model's counted"),
            ("absorb of block 1", "changes the model's counted"),
        ],
    ),
    "writes_into_the_carry": (
        {"absorb": writes_into_the_carry},
        [("absorb of block 0", "changes its argument in place")],
    ),
    "second_call_differs": (
        {"absorb": grows},
        [("absorb of block 0", "its second call returns another carry")],
    ),
    # decode
    "logits": (
        likelihood(lambda p: p.mean),
        [("decode", "it returns float32[B, 5], bare parameters")],
    ),
    "decode_none": (likelihood(lambda p: None), [("decode", "returns a NoneType")]),
    "no_mean": (
        likelihood(lambda p: Nameless(p)),
        [("decode", "a Nameless, has no mean")],
    ),
    "no_density_of_x": (
        likelihood(lambda p: NoDensity(p.mean)),
        [("decode", "a NoDensity, has no log_prob")],
    ),
    "mean_method": (likelihood(MeanMethod), [("decode", "make it a property")]),
    "mean_shape": (
        likelihood(lambda p: unit(p.mean[:, :4])),
        [("decode", "mean of the likelihood is float32[B, 4]; expected float32[B, 5]")],
    ),
    "x_unsummed": (
        likelihood(lambda p: Unsummed(*p)),
        [("decode, log_prob", "float32[B, 5]; expected float32[B]")],
    ),
    "x_sample_shape": (
        likelihood(lambda p: Lopsided(*p)),
        [("decode, sample", "float32[B, 1]; expected float32[B, 5]")],
    ),
    "decode_raises": (
        {"decode": lambda self, carry: carry["absent"]},
        [("decode", "it raises KeyError: 'absent'")],
    ),
}


class Nameless(NamedTuple):
    normal: Normal

    def sample(self, key):
        return self.normal.sample(key)

    def log_prob(self, value):
        return self.normal.log_prob(value)


def assert_named(found, expected):
    """Each expected (where, words), in any order, and nothing else."""
    assert len(found) == len(expected), found
    for where, words in expected:
        match = [s for s in found if s.startswith(f"{where}") and words in s]
        assert match, (where, words, found)
    for sentence in found:
        assert re.fullmatch(r"\S.*: .*; expected .*; .*\.", sentence), sentence


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_vae_is_named(case):
    SEEN.clear()
    members, expected = CASES[case]
    assert_named(sentences(check, wrong(**members), X), expected)
    SEEN.clear()


def test_a_missing_method_of_a_linen_module_is_named():
    class Half(nn.Module):
        blocks = (Block(1, (3,), (0,)),)

        def encode(self, x, key):
            return Encoding((x[None, :, :3],), jnp.sum(x, 1)[:, None])

    found = sentences(check, FrozenVAE(Half(), {}), X)
    assert_named(found, [(m, f"Half has no method `{m}`") for m in METHODS[1:]])


class SetsItself(TwoBlockVAE):
    def absorb(self, block, k, carry, z_k):
        self.last = z_k
        return super().absorb(block, k, carry, z_k)


class UpdatesStatistics(TwoBlockVAE):
    def setup(self):
        super().setup()
        self.count = self.variable("statistics", "count", jnp.zeros, ())

    def encode(self, x, key):
        self.count.value += 1.0
        return super().encode(x, key)


class IfOfK(ThreeGroupVAE):
    def prior(self, block, k, carry):
        return super().prior(block, k if k > 0 else 0, carry)


def test_linen_modules_are_named_too():
    x = jnp.zeros((2, 3))
    found = sentences(check, frozen(SetsItself()), x)
    where = [
        ("absorb of block 0", "assigns to an"),
        ("absorb of block 1", "assigns to"),
    ]
    assert_named(found, where)
    module = UpdatesStatistics()
    variables = frozen(TwoBlockVAE()).variables | {
        "statistics": {"count": jnp.zeros(())}
    }
    found = sentences(check, FrozenVAE(module, variables), x)
    assert_named(found, [("encode", "changes a variable of the model")])
    found = sentences(check, frozen(IfOfK()), x)
    assert_named(found, [("prior of block 0", "asks for k in an `if`")])
    found = sentences(check, FrozenVAE(ThreeGroupVAE(), {}), x)
    assert [s.split(":")[0] for s in found] == ["encode", "root"]
    assert all("Tried to access" in s for s in found)


def test_a_layer_named_by_k_is_named():
    class Named(ThreeGroupVAE):
        def setup(self):
            super().setup()
            self.layers = {f"group_{k}": nn.Dense(2) for k in range(3)}

        def absorb(self, block, k, carry, z_k):
            return super().absorb(block, k, carry, self.layers[f"group_{k}"](z_k))

    module = Named()
    key = jax.random.key(0)

    def everything(module, x, key):
        for k in range(3):
            module.absorb(0, k, module.root(1), x[:, :2])
        return module(x, key)

    init = nn.init(everything, module)
    variables = jax.eval_shape(init, key, jnp.zeros((1, 3)), key)
    found = sentences(check, FrozenVAE(module, variables), jnp.zeros((2, 3)))
    assert_named(found, [("absorb of block 0", "writes k into a string")])


# --- What jit and the data ask.


def test_no_pytree_is_named_beside_other_faults():
    class Plain(Ladder):
        def decode(self, carry):
            return super().decode(carry).mean

    found = sentences(check, Plain(jnp.ones((5, 4)), jnp.ones(2)), X)
    assert_named(found, [("the VAE", "Plain is no pytree"), ("decode", "bare")])


def test_leaves_and_static_parts_that_jit_refuses_are_named():
    named = dataclasses.replace(ladder(), is_ready="yes")
    assert_named(sentences(check, named, X), [("the VAE", ".is_ready is a str")])

    @functools.partial(
        jax.tree_util.register_dataclass,
        data_fields=["weights", "gains"],
        meta_fields=["is_ready"],
    )
    @dataclasses.dataclass(frozen=True)
    class Static(Ladder):
        pass

    check(Static(jnp.ones((5, 4)), jnp.ones(2), (1,)), X)
    held = Static(jnp.ones((5, 4)), jnp.ones(2), np.ones(2))
    assert_named(sentences(check, held, X), [("the VAE", "holds an array")])


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        (MLPVAE((5,)), "MLPVAE is a Linen module"),
        (Ladder, "Ladder is a class"),
        (FrozenVAE(ladder(), {}), "module of the FrozenVAE is a Ladder"),
    ],
)
def test_another_thing_in_the_place_of_a_model_is_named(vae, words):
    assert_named(sentences(check, vae, X), [("the VAE", words)])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X.astype(jnp.uint8), "it is uint8"),
        (X.astype(bool), "it is bool"),
        (X[0], "its shape is (5,), without a batch axis"),
        (X[0, 0], "it has no batch axis"),
        ([[0.0] * 5], "it is a list"),
    ],
)
def test_wrong_data_are_named(x, words):
    assert_named(sentences(check, ladder(), x), [("x", words)])


def test_an_x_of_another_size_is_named_where_it_meets_the_model():
    found = sentences(check, ladder(), jnp.zeros((2, 6)))
    assert [s.split(":")[0] for s in found] == ["encode", "decode"]


def test_pixels_out_of_reach_of_a_bernoulli_are_named():
    vae = wrong(**likelihood(lambda p: Bernoulli(p.mean)))
    check(vae, jnp.full((2, 5), 0.5))
    check(vae, jax.ShapeDtypeStruct((2, 5), jnp.float32))
    found = sentences(check, vae, X.at[0, 0].set(255.0))
    assert_named(found, [("x", "values from 0 to 255")])
    found = sentences(check, vae, X.at[0, 0].set(jnp.nan))
    assert_named(found, [("x", "values from nan to nan")])


# --- The list.


def test_all_faults_are_listed_together():
    def prior(self, block, k, carry):
        right = Ladder.prior(self, block, k, carry)
        return right._replace(context=None) if block == 1 else right

    vae = wrong(
        prior=prior,
        encode=lambda self, x, key: Ladder.encode(self, x, key).latents,
        decode=lambda self, carry: Ladder.decode(self, carry).mean,
    )
    with pytest.raises(InputError, match=r"^Wrong cannot be used, 4 things to mend"):
        check(vae, X.astype(jnp.uint8))
    assert_named(
        sentences(check, vae, X.astype(jnp.uint8)),
        [
            ("x", "it is uint8"),
            ("encode", "z without log_q"),
            ("prior of block 1", "the context is None"),
            ("decode", "bare parameters"),
        ],
    )


def test_the_batch_size_asked_with_is_no_other_size():
    def encode(self, x, key):
        right = Ladder.encode(self, x, key)
        return right._replace(log_q=right.log_q.T)

    # K = 3, x of batch 3: the layouts could not be told apart
    found = sentences(check, wrong(encode=encode), X[:3])
    assert_named(found, [("encode", "transpose it")])
    wide = LinearGaussianVAE(jnp.ones((7, 11)))
    with pytest.raises(InputError, match=r"asked with B = 13\)"):
        check(wide, jnp.zeros((2, 19)))


def test_the_first_error_is_the_cause():
    with pytest.raises(InputError) as caught:
        check(wrong(decode=lambda self, carry: carry["absent"]), X)
    assert isinstance(caught.value.__cause__, KeyError)


# --- Discriminators.


class Column(QuadraticRatio):
    def log_ratio(self, z, feature):
        return super().log_ratio(z, feature)[:, None]


class Half(QuadraticRatio):
    def log_ratio(self, z, feature):
        return super().log_ratio(z, feature).astype(jnp.bfloat16)


class WholeOnly(nn.Module):
    def __call__(self, z, context):
        return jnp.zeros(z.shape[0])


class Unbatched(QuadraticRatio):
    def embed(self, context):
        return jnp.zeros(3)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, z, context):
        return nn.BatchNorm(use_running_average=True)(z.reshape(z.shape[0], -1))[:, 0]

    def embed(self, context):
        return ()

    def log_ratio(self, z, feature):
        return self(z, feature)


MAPS = wrong(
    blocks=(Block(1, (4, 4, 2), (0,)), Block(2, (4, 4, 2), (4, 4, 3))),
)


@pytest.mark.parametrize("network", [MLPDiscriminator((4,)), QuadraticRatio()])
@pytest.mark.parametrize("vae", [ladder(), MAPS, frozen(TwoBlockVAE())])
def test_a_right_discriminator_passes(vae, network):
    check_discriminator(vae, network)


def test_maps_suit_a_residual_discriminator():
    check_discriminator(MAPS, ResidualDiscriminator(4, "AB"))


@pytest.mark.parametrize(
    ("network", "where", "words"),
    [
        (Column(), "Column for block 0 (lat", "`log_ratio` returns is float32[B, 1]"),
        (Half(), "Half for block 0", "bfloat16[B]; expected float32[B]"),
        (Unbatched(), "Unbatched for block 0", "`embed` returns float32[3]"),
        (Normalised(), "Normalised for block 0", "['batch_stats', 'params']"),
    ],
)
def test_a_wrong_discriminator_is_named(network, where, words):
    vae = LinearGaussianVAE(jnp.ones((5, 2)))
    found = sentences(check_discriminator, vae, network)
    assert [s for s in found if s.startswith(where) and words in s], found


def test_a_classifier_of_maps_on_vectors_is_named():
    found = sentences(check_discriminator, ladder(), ResidualDiscriminator(4, "AB"))
    where = "ResidualDiscriminator for block"
    assert_named(
        found,
        [
            (f"{where} 0 (latent_shape (3,)", "MLPDiscriminator"),
            (f"{where} 1 (latent_shape (2, 2)", "MLPDiscriminator"),
        ],
    )
    assert "ResidualDiscriminator reads maps" in found[0]


def test_what_is_no_discriminator_is_named():
    vae = LinearGaussianVAE(jnp.ones((5, 2)))
    found = sentences(check_discriminator, vae, WholeOnly())
    assert_named(found, [("embed", "no method"), ("log_ratio", "no method")])
    found = sentences(check_discriminator, vae, MLPDiscriminator)
    assert_named(found, [("the discriminator", "it is a class; ")])
    found = sentences(check_discriminator, vae, lambda z, c: z)
    assert_named(found, [("the discriminator", "it is a function")])
    found = sentences(check_discriminator, wrong(blocks=None), MLPDiscriminator())
    assert_named(found, [("blocks", "has no `blocks`")])


def test_a_vae_that_is_only_drawn_from_needs_no_x():
    """Then `encode` is not asked; what is drawn and decoded is."""
    check(ladder())
    check(wrong(encode=lambda self, x, key: None))
    with pytest.raises(InputError, match="decode: it returns"):
        check(wrong(decode=lambda self, carry: carry["z"]))
