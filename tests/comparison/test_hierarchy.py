"""`comparison/hierarchy.py`: priors side by side on a VAE of several groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import compare, fits, hierarchy, protocol, resampled
from ncp_jax.comparison.hierarchy import Hierarchy, OnTop, WithRest
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.errors import InputError
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.ex_post import gmm
from ncp_jax.priors.ex_post.contract import Encodings, LatentPrior
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.latents import walk
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.ncp import preparation
from ncp_jax.training.ncp.signal import SignalSettings
from tests.oracles import conditional_hole

HOLE = conditional_hole(num_groups=3, latent_dim=6, num_directions=2, seed=2)


def model(widths=(2, 0, 1)):
    """Of three groups the middle one has no signal, and the last one direction."""
    keep = np.arange(2)[None] < np.array(widths)[:, None]
    basis = HOLE.directions * jnp.float32(keep[:, None])
    directions = Directions((basis,), (), (), (), widths)
    return Hierarchy(SignalVAE(HOLE, directions, context_size=2))


def test_z_is_u_and_the_rest_and_comes_back(key):
    of_groups, x = model(), HOLE.data(key, 5)
    assert of_groups.groups == Groups((2, 1), 2)
    z, log_q = of_groups.encode(x, key)
    assert z.shape == (5, 3 + 18) and of_groups.learned(z).shape == (5, 3)
    latents, log_q_each = of_groups.vae.encode(x, key)
    for found, expected in zip(of_groups._latents(z), latents, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(of_groups.learned(z)[:, 2], latents[0][2, :, 0])
    np.testing.assert_allclose(log_q, log_q_each.sum(1), rtol=1e-6)
    per_block, carry = walk(
        of_groups.vae, latents, lambda b, k, prior, z_k: prior.base.log_prob(z_k)
    )
    log_p = of_groups.whole(of_groups.base()).log_prob(z)
    np.testing.assert_allclose(log_p, jnp.concatenate(per_block).sum(0), rtol=1e-5)
    expected = of_groups.vae.decode(carry).mean
    np.testing.assert_allclose(of_groups.decode(z).mean, expected, rtol=1e-5)
    assert of_groups.posterior(x) is None


def test_coordinates_are_resampled_by_a_prior_over_them(key):
    """Of one proposal nothing is chosen; of many their weights are those of all z."""
    of_groups, x = model(), np.asarray(HOLE.data(key, 300))
    of_q = Encodings(np.zeros((300, 2, 3)), np.zeros((300, 1, 3)), None)
    near = Gaussian(jnp.array([2.0, 0.0, 0.0]), jnp.array([0.3, 1.0, 1.0]))
    found = [
        resampled.once(
            *(of_q, of_groups, near, x, x, preparation.as_stored, key),
            ComparisonSettings(num_proposals=num, num_resampled=1),
        )
        for num in (1, 200)
    ]
    assert found[1].train.shape == (300, 2, 3) and found[1].valid.shape == (300, 1, 3)
    distances = [float(jnp.mean((of.train[..., 0] - 2.0) ** 2)) for of in found]
    assert distances[1] < 0.7 * distances[0]


def test_a_prior_over_the_first_leaves_the_rest(key):
    first = Gaussian(jnp.array([3.0]), jnp.array([0.1]))
    prior = WithRest(first, 1, 2)
    assert isinstance(prior, LatentPrior) and prior.density == "exact"
    keys = jax.random.split(key, 2_000)
    z = prior.sample(keys)
    np.testing.assert_allclose(z.mean(0), [3.0, 0.0, 0.0], atol=0.13)
    np.testing.assert_allclose(z.std(0), [0.1, 1.0, 1.0], rtol=0.12)
    both = Gaussian(jnp.array([3.0, 0, 0]), jnp.array([0.1, 1, 1]))
    np.testing.assert_allclose(prior.log_prob(z), both.log_prob(z), rtol=1e-4)
    np.testing.assert_array_equal(prior.sample(keys[3:4])[0], z[3])


def test_other_priors_are_fitted_to_the_first_group_alone(key):
    u = jax.random.normal(key, (400, 1, 3)) * jnp.array([[[0.5, 1.0, 1.0]]])
    encodings = Encodings(u, u[:50], Groups((1, 2)).base)
    seen = []

    def fit(key, given, folder):
        seen.append(given)
        return gmm.Settings(num_components=(1,))(key, given, folder)

    prior = OnTop(fit, 1, 2)(key, encodings, None)
    assert seen[0].train.shape == (400, 1, 1) and seen[0].valid.shape == (50, 1, 1)
    assert prior.sample(jax.random.split(key, 4)).shape == (4, 3)
    gain = prior.log_prob(u[:, 0]) - encodings.base.log_prob(u[:, 0])
    expected = 0.5 * (0.25 - 1) - np.log(0.5)  # KL(N(0, 0.5^2) || N(0, 1))
    np.testing.assert_allclose(gain.mean(), expected, atol=0.1)


def test_rows_say_which_groups_they_are_of():
    names = {"gaussian": {}, "flow": {"num_bins": 5}, "gmm": {}, "own": lambda *_: None}
    found = hierarchy.fits_of(Groups((2, 3)), names)
    assert list(found) == ["gaussian", "flow", "gmm_top", "own"]
    assert found["flow"].num_bins == 5 and found["flow"].groups.widths == (2, 3)
    assert (found["gmm_top"].width, found["gmm_top"].num_rest) == (2, 3)
    with pytest.raises(InputError, match="vamp is a mixture"):
        hierarchy.fits_of(Groups((2,)), {"vamp": {}})
    with pytest.raises(InputError, match="the row of 'gmm' is called 'gmm_top'"):
        hierarchy.fits_of(Groups((2,)), {"gmm": {}, "gmm_top": lambda *given: None})
    with pytest.raises(InputError, match="no setting 'num_bin'"):
        hierarchy.fits_of(Groups((2,)), {"flow": {"num_bin": 5}})


def test_a_base_of_the_first_group_is_fitted_once():
    found = hierarchy.fits_of(Groups((2, 3)), {"ncp_over_gmm": {}, "gmm": {}})
    parts = protocol._parts_first(found)
    of_ncp = ("ncp_over_gmm_top", {"base": "gmm_top"})
    assert list(parts.items()) == [("gmm_top", {}), of_ncp]
    first = Gaussian(jnp.zeros(2), jnp.ones(2))
    on_it = fits.over(found["ncp_over_gmm_top"], {"base": WithRest(first, 2, 3)})
    assert (on_it.width, on_it.num_rest) == (2, 3) and on_it.fit.base.prior is first


def test_what_a_row_is_built_on_has_the_settings_given_for_it():
    groups, few = Groups((2, 3)), {"num_components": (2,)}
    (ncp,) = hierarchy.fits_of(groups, {"ncp_over_gmm": {}}, {"gmm": few}).values()
    assert ncp.fit.base.num_components == (2,)
    both = hierarchy.fits_of(groups, {"gmm": few, "gmm_and_gmm": {}})
    assert both["gmm_and_gmm_top"].fit.second.num_components == (2,)
    ratio = {"ncp": {"hidden_dims": (5,)}}  # of all groups, and of none below
    hierarchy.fits_of(groups, {**ratio, "ncp_over_gmm": {}})
    hint = "of 'flow' are those of all groups, and 'ncp_over_flow'"
    with pytest.raises(InputError, match=hint):
        hierarchy.fits_of(groups, {"flow": {"num_bins": 5}, "ncp_over_flow": {}})
    own = {"ncp_over_flow": {"base": {"num_couplings": 2}}}
    (ncp,) = hierarchy.fits_of(groups, own).values()
    assert ncp.fit.base.num_couplings == 2


def test_directions_are_found_anew_for_another_prepare(key, tmp_path):
    data = np.asarray(HOLE.data(key, 2_000))
    settings = SignalSettings(num_examples=1_000)
    counts = []
    for scale in (1.0, 1.0, 0.5):
        hierarchy.of(HOLE, data, lambda k, x, s=scale: s * x, key, settings, tmp_path)
        counts.append(len(list(tmp_path.iterdir())))
    assert counts == [1, 1, 2]


@pytest.mark.parametrize(
    "asked",
    [
        {"is_joint": True},
        {"context": "features"},
        {"context": "none", "with_maps": True},
    ],
)
def test_ratios_of_more_than_coordinates_are_refused(key, asked):
    with pytest.raises(InputError, match="read the coordinates of each group"):
        hierarchy.of(
            HOLE, np.zeros((4, 1)), lambda k, x: x, key, SignalSettings(**asked)
        )


@pytest.mark.slow
def test_priors_are_compared_on_a_hierarchy_whose_gain_is_known(key, tmp_path):
    """The flow's gain within 0.06 nats and five errors; a tenth of it is 0.25."""
    data = np.asarray(HOLE.data(key, 11_500))
    train, valid, test = np.split(data, [10_000, 11_000])
    settings = {
        "max_examples": 300,
        "num_importance_samples": 100,
        "num_samples": 200,
        "num_mmd_samples": 50,
        "num_encodings": 2,
    }
    training = {"num_steps": 1_500, "learning_rate": 3e-3, "steps_per_eval": 250}
    small = {"num_couplings": 4, "hidden_dims": (32,), "training": training}
    priors = {"gaussian": {}, "flow": small, "gmm": {"num_components": (1,)}}
    found = compare.compare(
        *(HOLE, train, valid, test),
        priors=priors,
        key=key,
        settings=ComparisonSettings(**settings),
        directions=SignalSettings(num_examples=5_000),
        folder=tmp_path,
    )
    gain = found.results["flow"].metrics["gain"]
    assert abs(gain.value - HOLE.nll_gain()) < 0.06 + 5 * gain.stderr
    top = found.results["gmm_top"].metrics["gain"]
    assert 0.1 < top.value < gain.value and HOLE.nll_gain() > 2.4
    assert found.results["gaussian"].metrics["gain"].value == 0.0
    assert "signal coordinates of each group: 2, 2, 2" in found.about["groups"]
    assert found.page is not None and found.page.exists()
