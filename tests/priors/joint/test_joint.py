"""Priors that learn with their VAE: the bound by hand, its gradient, and what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from ncp_jax import rng
from ncp_jax.models import shared
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.check import check
from ncp_jax.models.shared import Shared
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.joint.lars import LARSVAE
from ncp_jax.priors.joint.snis import SNISVAE
from ncp_jax.priors.joint.vamp import VampVAE, raw_inputs
from ncp_jax.priors.latents import contrastive_draws
from ncp_jax.training import vae_update
from ncp_jax.training.checkpoints import Checkpoints, digests
from tests import tiny

SIZES = {"data_shape": (3,), "latent_dim": 2, "hidden_dims": (8,)}
SIZES |= {"likelihood": "normal", "likelihood_std": 0.5}
VAES = {
    "snis": SNISVAE(**SIZES, prior_dims=(8,), num_proposals=16),
    "lars": LARSVAE(
        **SIZES, prior_dims=(8,), num_attempts=5, num_draws=64, num_z_draws=400
    ),
    "vamp": VampVAE(**SIZES, num_components=4),
}
X = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
SLOW = pytest.mark.slow
TRAINING = ["batch_stats", "prior_state"]


def as_it_is(key, stored):
    del key
    return stored


def variables_of(name):
    """Fresh ones, but for last layers that are not zero."""
    variables = jax.jit(VAES[name].init)(jax.random.key(1), X[:1], jax.random.key(2))
    of_prior = {"snis": "ratio", "lars": "accept"}.get(name)
    if of_prior:
        last = variables["params"][of_prior]["Dense_1"]
        noise = np.random.default_rng(3).normal(0.0, 3.0, last["kernel"].shape)
        last["kernel"] = jnp.asarray(noise, jnp.float32)
    return variables


def logit_by_hand(params, z):
    """The network of the ratio or of a, in float64."""
    first, last = (
        {k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()}
        for i in (0, 1)
    )
    h = np.tanh(np.asarray(z, np.float64) @ first["kernel"] + first["bias"])
    return (h @ last["kernel"] + last["bias"])[:, 0]


def drawn(name, variables, key):
    """q(z | x), the z of the bound, and the key of what the prior draws."""
    q = VAES[name].apply(variables, X, method="posterior")
    return q, q.sample(rng.stream(key, "posterior")), rng.stream(key, "prior")


def kl_by_hand(q):
    """KL(q, N(0, I)) [B]."""
    mean, std = (np.asarray(leaf, np.float64) for leaf in q)
    return 0.5 * (std**2 + mean**2 - 1 - 2 * np.log(std)).sum(1)


def test_snis_is_bounded_as_lawson_et_al_do(key):
    """log r(z) - log of the mean of r over z and the K - 1 proposals of the batch."""
    variables = variables_of("snis")
    terms = VAES["snis"].apply(variables, X, key, method="elbo_terms")
    q, z, prior_key = drawn("snis", variables, key)
    proposals = Gaussian(jnp.zeros(2), jnp.ones(2)).sample(
        jax.random.split(prior_key, 15)
    )
    params = variables["params"]["ratio"]
    own, others = (logit_by_hand(params, array) for array in (z, proposals))
    all_16 = np.concatenate([own[:, None], np.tile(others, (6, 1))], 1)
    excess = own - special.logsumexp(all_16, 1) + np.log(16)
    np.testing.assert_allclose(terms.kl[:, 0], kl_by_hand(q) - excess, rtol=1e-4)
    assert np.abs(excess).max() > 0.1  # so a bound without the ratio would be seen
    likelihood = VAES["snis"].apply(variables, z, method="decode").log_prob(X)
    np.testing.assert_allclose(terms.log_likelihood, likelihood, rtol=1e-5)


def lars_by_hand(logit, z):
    """log of a (1 - alpha) / Z + alpha, T = 5."""
    alpha = (1 - z) ** 4
    return np.log(special.expit(logit) * (1 - alpha) / z + alpha)


def test_lars_has_the_average_in_the_place_of_z_and_moves_it(key):
    """The bound and its gradient, whose part by Z is that of the newest draws."""
    variables, module = variables_of("lars"), VAES["lars"]
    params = variables["params"]["accept"]

    def kl(shift):
        last = params["Dense_1"] | {"bias": params["Dense_1"]["bias"] + shift}
        moved = variables["params"] | {"accept": params | {"Dense_1": last}}
        terms, changed = module.apply(
            variables | {"params": moved},
            X,
            key,
            method="elbo_terms",
            mutable=TRAINING,
        )
        return jnp.sum(terms.kl), (terms.kl[:, 0], changed["prior_state"])

    slope, (found, state) = jax.grad(kl, has_aux=True)(0.0)
    q, z, prior_key = drawn("lars", variables, key)
    keys = jax.vmap(rng.at_step, (None, 0))(prior_key, jnp.arange(64))
    draws = Gaussian(jnp.zeros(2), jnp.ones(2)).sample(keys)
    logit, of_draws = (logit_by_hand(params, array) for array in (z, draws))
    newest = special.expit(of_draws).mean()
    average = 0.99 * 0.1 + 0.01 * newest  # it starts at the acceptance

    def excess(shift):
        moved = special.expit(of_draws + shift).mean() - newest
        return lars_by_hand(logit + shift, average + moved)

    np.testing.assert_allclose(found, kl_by_hand(q) - excess(0.0), rtol=1e-4)
    np.testing.assert_allclose(state["z_average"], average, rtol=1e-5)
    assert abs(newest - 0.1) > 0.005  # a frozen average would be seen
    expected = (excess(-1e-4) - excess(1e-4)).sum() / 2e-4
    np.testing.assert_allclose(slope, expected, rtol=1e-2)


def test_lars_is_measured_with_the_z_of_its_own_weights(key):
    """Which validation computes; a pass outside training changes nothing."""
    variables, module = variables_of("lars"), VAES["lars"]
    _, settled = module.apply(variables, key, method="settle", mutable=["prior_state"])
    state = settled["prior_state"]
    prior = module.apply(variables | settled, method="latent_prior")
    draws = prior.base.sample(jax.random.split(jax.random.key(5), 100_000))
    a = special.expit(logit_by_hand(variables["params"]["accept"], draws))
    error = state["log_z_stderr"]
    np.testing.assert_allclose(error, a.std() / a.mean() / 400**0.5, rtol=0.2)
    assert abs(state["log_z"] - np.log(a.mean())) < 5 * error
    terms = module.apply(variables | settled, X, key, method="elbo_terms")
    q, z, _ = drawn("lars", variables, key)
    logit = logit_by_hand(variables["params"]["accept"], z)
    excess = lars_by_hand(logit, np.exp(float(state["log_z"])))
    np.testing.assert_allclose(terms.kl[:, 0], kl_by_hand(q) - excess, rtol=1e-4)


def test_vamp_is_the_mixture_of_its_own_posteriors(key):
    variables, module = variables_of("vamp"), VAES["vamp"]
    inputs = variables["params"]["pseudo_inputs"]
    components = module.apply(variables, inputs, method="posterior")
    q, z, _ = drawn("vamp", variables, key)
    log_p = [
        special.logsumexp(
            [
                stats.norm.logpdf(z_b, mean, std).sum()
                for mean, std in zip(*components, strict=True)
            ]
        )
        - np.log(4)
        for z_b in np.asarray(z)
    ]
    expected = q.log_prob(z) - np.array(log_p)
    params = variables["params"]

    def kl(raw, mutable):
        moved = variables | {"params": params | {"pseudo_inputs": raw}}
        out = module.apply(moved, X, key, method="elbo_terms", mutable=mutable)
        kl = (out[0] if mutable else out).kl[:, 0]
        return jnp.sum(kl), kl

    for mutable in (TRAINING, False):
        slope, found = jax.grad(kl, has_aux=True)(inputs, mutable)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert (np.abs(slope).sum(1) > 0).all()  # every pseudo-input learns


def test_pseudo_inputs_start_at_examples():
    examples = jnp.array([[0.0, 0.5, 1.0]])
    assert raw_inputs(examples, False) is examples
    shown = jax.nn.sigmoid(raw_inputs(examples, True))
    np.testing.assert_allclose(shown, [[0.05, 0.5, 0.95]], rtol=1e-5)


# --- training, as the loop does it


def started(name, optimizer, **settings):
    x, key = jnp.asarray(X[:1]), jax.random.key(4)
    return vae_update.init_state(
        VAES[name], variables_of(name), optimizer, x, key, **settings
    )


@pytest.mark.parametrize("name", [pytest.param("snis", marks=SLOW), "lars"])
def test_updates_reach_the_prior_and_resume_to_the_same_bits(name, key, tmp_path):
    optimizer = optax.adam(1e-2)
    update = vae_update.make_update(VAES[name], optimizer, as_it_is, key, ema_decay=0.9)
    validate = jax.jit(vae_update.make_validate(VAES[name], as_it_is, key))
    data = {"train": jnp.asarray(X), "valid": jnp.asarray(X[None])}
    data["valid_mask"] = jnp.ones((1, 6), bool)

    @tiny.Counted
    def three(state):
        rows = jnp.tile(jnp.arange(6), (3, 1))
        return jax.lax.scan(lambda s, r: update(s, data, r), state, rows)[0]

    start = started(name, optimizer, ema_decay=0.9)
    half, metrics = validate(three(start), data)
    assert np.isfinite(metrics["loss"]) and metrics["newest_loss"] != metrics["loss"]
    with Checkpoints(tmp_path, {}) as saved:
        saved.save(3, jax.device_get(half), None)
        saved.wait()
        restored = jax.device_put(saved.restore_latest(start).state)
    whole = three(half)
    assert digests(three(restored)) == digests(whole)
    assert three.num_traces == 1  # a weak type would compile it again
    for before, after in zip(
        *map(jax.tree.leaves, (start.params, whole.params)), strict=True
    ):
        assert not np.array_equal(before, after)  # the prior's parameters, too
    if name == "lars":
        first, last = (s.model_state["prior_state"] for s in (start, whole))
        assert first["z_average"] != last["z_average"]
        assert (
            half.model_state["prior_state"]["log_z"] == last["log_z"] != first["log_z"]
        )
        forgetful = half.replace(model_state={**half.model_state, "prior_state": first})
        assert digests(three(forgetful)) != digests(whole)


# --- as the base prior of stage 2


def test_a_learned_density_is_a_base_prior(key):
    vae = FrozenVAE(VAES["vamp"], variables_of("vamp"))
    check(vae, X)
    base = vae.prior(0, 0, vae.root(5)).base
    assert isinstance(base, Shared)
    keys = jax.random.split(key, 5)
    z = shared.sample_each(keys, base)
    np.testing.assert_allclose(  # a chain depends on its own key alone
        shared.sample_each(keys[2:3], Shared.of(base.one, 1))[0], z[2], rtol=1e-5
    )
    np.testing.assert_allclose(base.log_prob(z), base.one.log_prob(z), rtol=1e-6)
    (draws,) = contrastive_draws(vae, jnp.asarray(X), key, num_negatives=3)
    assert draws.negative.shape == (1, 18, 2) and draws.positive.shape == (1, 6, 2)


def test_a_bound_is_no_base_prior():
    vae = FrozenVAE(VAES["snis"], variables_of("snis"))
    base = vae.prior(0, 0, vae.root(5)).base
    with pytest.raises(ValueError, match="needs a key"):
        base.log_prob(jnp.zeros((5, 2)))
