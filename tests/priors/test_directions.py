"""`directions.py`: widths, padding, files, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.data.datasets import padded_batches
from ncp_jax.errors import InputError
from ncp_jax.models.base import Block
from ncp_jax.priors.directions import Directions, fit_directions, random_directions
from ncp_jax.priors.signal_covariance import choose_width
from ncp_jax.priors.signal_sums import gives_means, standardise
from tests.oracles import ChainVAE, TwoBlockVAE
from tests.signal_toy import D, SignalVAE, examples, planes, prepare

PLANES = planes(3)
GAINS = ((0.8, 0.5), (0.0, 0.0), (0.7, 0.0))


def three_groups(**settings):
    return SignalVAE(jnp.asarray(PLANES), jnp.asarray(GAINS), **settings)


def fit(vae, num=400, **settings):
    batches = padded_batches(examples(num), 200)
    return fit_directions(vae, batches, prepare, rng.root(4), **settings)


@pytest.fixture(scope="module")
def fitted():
    return fit(three_groups())


def test_every_group_has_the_directions_that_it_needs(fitted):
    assert fitted.widths == (2, 0, 1)
    assert fitted.num_directions == 2
    (basis,) = fitted.basis
    assert basis.shape == (3, D, 2) and basis.dtype == jnp.float32
    cosines = np.linalg.svd(PLANES[0].T @ basis[0], compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    np.testing.assert_array_equal(basis[1], 0)
    # One gain: the first column of the plane, and padding.
    np.testing.assert_allclose(np.abs(PLANES[2, :, 0] @ basis[2]), [1, 0], atol=1e-5)
    np.testing.assert_array_equal(basis[2, :, 1], 0)


def test_the_spectrum_is_kept(fitted):
    assert [leaf[0].shape for leaf in (fitted.spectrum, fitted.total)] == [(3, D), (3,)]
    np.testing.assert_allclose(fitted.spectrum[0].sum(1), fitted.total[0], atol=1e-4)
    np.testing.assert_allclose(fitted.noise_floor[0], 0.015)
    np.testing.assert_array_less(np.diff(np.asarray(fitted.spectrum[0])), 1e-6)


def test_the_error_of_the_signal_is_that_of_its_examples(fitted):
    """The trace is the mean of |m|^2 over 400 examples; a 1 % error would be seen."""
    x = examples(400).astype(np.float64)
    for k, gains in enumerate(GAINS):
        each = np.sum((x * np.asarray(gains)[None]) ** 2, 1)
        stderr = each.std(ddof=1) / 20
        for found, expected, rtol in (
            (fitted.total, each.mean(), 1e-4),
            (fitted.total_stderr, stderr, 3e-3),
        ):  # a group without signal has what rounding leaves
            np.testing.assert_allclose(found[0][k], expected, rtol, atol=1e-12)
    assert fitted.num_examples == 400


def test_files_from_before_the_error_was_kept_are_read_and_keep_their_digest(
    fitted, tmp_path
):
    older = dataclasses.replace(fitted, total_stderr=(), num_examples=0)
    older.save(tmp_path / "older.npz")
    with np.load(tmp_path / "older.npz") as stored:
        assert not any("stderr" in name or "num" in name for name in stored.files)
    loaded = Directions.load(tmp_path / "older.npz")
    assert loaded.digest() == older.digest() and loaded.total_stderr == ()


def test_coordinates_of_prior_draws_are_standard_normal(fitted):
    """U^T U is the identity, so U^T e of e ~ N(0, I) is N(0, I)."""
    gram = np.einsum("kdi,kdj->kij", *(fitted.basis[0],) * 2)
    expected = [np.diag(np.arange(2) < width) for width in fitted.widths]
    np.testing.assert_allclose(gram, np.stack(expected), atol=1e-5)


def test_draws_serve_where_there_are_no_means():
    """No signal passes for one in a millionth of all fits; 0.49 is 9 floors high."""
    found = fit(three_groups(has_means=False), num=4_000)
    assert found.widths == (2, 0, 1)
    assert (np.asarray(found.noise_floor[0]) > 0.02).all()


def test_means_are_asked_for_before_draws():
    x = jnp.zeros((3, 2))
    assert gives_means(three_groups(), x)
    assert not gives_means(three_groups(has_means=False), x)
    assert not gives_means(ChainVAE(), jnp.zeros((3, 1)))


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({"cap": 1}, (1, 0, 1)),
        ({"floor": 0.35}, (1, 0, 1)),  # 0.25 lies below
        ({"floor": 2.0}, (0, 0, 0)),
        ({"share": 0.5}, (1, 0, 1)),
    ],
)
def test_settings_choose_the_widths(settings, widths):
    found = fit(three_groups(), **settings)
    assert found.widths == widths
    assert found.basis[0].shape == (3, D, 1)


@pytest.mark.parametrize(
    ("floor", "share", "cap", "width"),
    [
        (0.1, 1.0, 9, 4),
        (0.1, 0.9, 9, 3),  # 4 + 3 + 2 of 10
        (0.1, 0.91, 9, 4),
        (1.0, 1.0, 9, 3),  # what equals the floor lies not above it
        (0.1, 1.0, 2, 2),
        (0.1, 1e-9, 9, 1),
        (5.0, 1.0, 9, 0),
    ],
)
def test_a_width_holds_its_share(floor, share, cap, width):
    values = np.array([4.0, 3.0, 2.0, 1.0, 0.05, -1.0])
    assert choose_width(values, floor, share, cap) == width


def test_directions_enter_compiled_functions(fitted):
    @jax.jit
    def project(directions, e):
        return e @ directions.basis[0][0], directions.widths[2] * e[0, 0]

    u, one = project(fitted, jnp.ones((5, D)))
    assert u.shape == (5, 2) and one == 1.0


def test_random_directions_are_orthonormal():
    found = random_directions(TwoBlockVAE(), rng.root(1), num=3)
    assert found.widths == (2, 2) and found.num_directions == 2
    for basis in found.basis:
        np.testing.assert_allclose(basis[0].T @ basis[0], np.eye(2), atol=1e-6)
    wide = random_directions(three_groups(), rng.root(1), num=7)
    assert wide.widths == (7, 7, 7)
    assert np.abs(wide.basis[0][0] - wide.basis[0][1]).max() > 0.1
    other = random_directions(three_groups(), rng.root(2), num=7)
    assert np.abs(wide.basis[0] - other.basis[0]).max() > 0.1


def test_a_file_brings_the_directions_back(fitted, tmp_path):
    fitted.save(tmp_path / "directions.npz")
    loaded = Directions.load(tmp_path / "directions.npz")
    assert loaded.widths == fitted.widths
    jax.tree.map(np.testing.assert_array_equal, loaded, fitted)
    assert loaded.digest() == fitted.digest()
    assert [path.name for path in tmp_path.iterdir()] == ["directions.npz"]


def test_the_digest_sees_every_part(fitted):
    changed = [
        dataclasses.replace(fitted, widths=(2, 0, 2)),
        *(
            dataclasses.replace(fitted, **{name: (getattr(fitted, name)[0] + 1e-3,)})
            for name in ("basis", "spectrum", "total", "noise_floor", "total_stderr")
        ),
    ]
    assert len({each.digest() for each in (fitted, *changed)}) == 7


def test_a_damaged_file_is_refused(fitted, tmp_path):
    path = tmp_path / "directions.npz"
    fitted.save(path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (flipped, whole[:-100], b"", b"no npz"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"directions\.npz.*delete it and fit"):
            Directions.load(path)
    with pytest.raises(InputError, match="No such file"):
        Directions.load(tmp_path / "nothing.npz")


@pytest.mark.parametrize("name", ["basis/0", "widths", "total/0", "sha256"])
def test_a_changed_file_is_refused(fitted, tmp_path, name):
    """The zip's own checksums are right; the hashes are not."""
    path = tmp_path / "directions.npz"
    fitted.save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    if name == "sha256":
        hashes = json.loads(str(arrays[name]))
        arrays[name] = np.array(json.dumps(hashes | {"widths": "0"}))
    else:
        arrays[name] = arrays[name] + arrays[name].dtype.type(1)
    for content in (arrays, {k: v for k, v in arrays.items() if k != name}):
        np.savez(path, **content)
        with pytest.raises(InputError, match="fit them again"):
            Directions.load(path)


def test_directions_of_other_groups_are_refused(fitted):
    fitted.check(three_groups().blocks)
    for blocks in (
        (Block(2, (10, 4), (0,)),),
        (Block(3, (10, 5), (0,)),),
        three_groups().blocks * 2,
    ):
        with pytest.raises(InputError, match=r"\(3, 40\).*fit them again"):
            fitted.check(blocks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_passes": 1}, "num_passes = 1"),
        ({"num_draws": 1, "use_means": False}, "num_draws = 1"),
        ({"num": 1}, "1 examples"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        fit(three_groups(), **settings)


def test_batches_of_two_shapes_are_refused():
    ragged = [(np.zeros((n, 2), np.float32), np.ones(n, bool)) for n in (4, 3)]
    with pytest.raises(InputError, match="padded_batches"):
        fit_directions(three_groups(), ragged, prepare, rng.root(0))


def test_a_base_prior_that_is_not_normal_is_named():
    with pytest.raises(InputError, match=r"Bernoulli.*reads z itself"):
        fit(three_groups(is_normal=False))


def test_encodings_that_are_not_finite_are_named():
    with pytest.raises(InputError, match="block 0 are not finite"):
        fit(SignalVAE(jnp.asarray(PLANES), jnp.full((3, 2), jnp.nan)))


def test_standardise_undoes_the_prior(key):
    vae, u = three_groups(), jnp.array([[0.3, -0.2]])
    base = vae.prior(0, 1, u).base
    e = jax.random.normal(key, base.mean.shape)
    found = standardise(0, base, base.mean + base.std * e)
    np.testing.assert_allclose(found, e.reshape(1, D), atol=1e-5)
