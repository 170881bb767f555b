"""`metrics/latent_mmd.py`: every group by itself, all priors in one unit."""

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import gaussian_kernel, latent_mmd, two_sample

SETTINGS = {"seed": 3, "num_permutations": 99}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_groups_are_those_of_all_blocks_in_order():
    blocks = [normal(0, 5, 2, 3), normal(1, 5, 1, 2, 2, 4)]
    groups = latent_mmd.groups_of(blocks)
    assert [g.shape for g in groups] == [(5, 3), (5, 3), (5, 16)]
    np.testing.assert_array_equal(groups[1], blocks[0][:, 1])
    np.testing.assert_array_equal(groups[2][4], blocks[1][4].ravel())


@pytest.fixture
def draws():
    """q and two priors in two groups; "far" is shifted in the second alone."""
    q, near, far = ([normal(10 * s + k, 60, 2 + k) for k in (0, 1)] for s in (1, 2, 3))
    far[1] = far[1] + 1.5
    return q, {"near": near, "far": far}


def test_only_the_group_that_differs_is_found(draws):
    """The draws are fixed, so this fails always or never."""
    estimates, arrays = latent_mmd.per_group(*draws, **SETTINGS)
    p = {name: e.value for name, e in estimates.items() if name.startswith("mmd_p_")}
    assert p["mmd_p_far/1"] == 0.01  # the least that 99 permutations can give
    others = ("near/0", "near/1", "far/0")
    assert all(p[f"mmd_p_{name}"] > 0.01 for name in others)
    (low, high), value = arrays["mmd_null_far"][1], estimates["mmd_far/1"].value
    assert low < 0 < high < value
    assert estimates["mmd_far/1"].n == 60


def test_the_kernel_of_a_group_is_fitted_on_all_draws_together(draws):
    q, priors = draws
    estimates, arrays = latent_mmd.per_group(q, priors, num_components=2, **SETTINGS)
    for k in (0, 1):
        pooled = np.concatenate([q[k], priors["near"][k], priors["far"][k]])
        kernel = gaussian_kernel.fit(pooled, seed=3, num_components=2)
        np.testing.assert_allclose(
            arrays["mmd_kernel"][k], [kernel.bandwidth, kernel.explained]
        )
        for name, groups in priors.items():
            found = two_sample.mmd(q[k], groups[k], kernel, **SETTINGS)
            assert estimates[f"mmd_{name}/{k}"] == found.distance
            np.testing.assert_array_equal(
                arrays[f"mmd_null_{name}"][k], found.null_interval
            )
    assert arrays["mmd_kernel"][1, 1] < 1 == arrays["mmd_kernel"][0, 1]


def test_a_single_group_has_no_number(draws):
    q, priors = draws
    near = {"near": priors["near"][:1]}
    estimates, _ = latent_mmd.per_group(q[:1], near, **SETTINGS)
    assert estimates.keys() == {"mmd_near", "mmd_p_near"}


def test_the_p_value_has_the_error_of_its_permutations():
    p = latent_mmd._p_value(0.2, 399)
    assert p.stderr == pytest.approx(0.02) and p.n == 399


def test_draws_that_are_not_finite_are_refused(draws):
    q, priors = draws
    priors["far"][1][3, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        latent_mmd.per_group(q, priors, **SETTINGS)
