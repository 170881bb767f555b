"""`metrics/moments.py` against NumPy's own mean and covariance."""

import dataclasses

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import moments
from ncp_jax.evaluation.metrics.moments import Moments

CONTENT = "0123456789abcdef"
# Far from the origin: sums of squares would lose eight of sixteen digits.
FEATURES = 1e4 + np.random.default_rng(0).standard_normal((1_001, 5)).cumsum(1)


def assert_equal(a, b, rtol=1e-12):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol)


def test_they_are_the_mean_and_the_unbiased_covariance():
    whole = Moments.of(FEATURES)
    assert whole.count == 1_001
    np.testing.assert_allclose(whole.mean, FEATURES.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(FEATURES.T), rtol=1e-10)
    assert whole.mean.dtype == whole.scatter.dtype == np.float64


def test_batches_of_any_size_and_order_give_the_whole():
    whole = Moments.of(FEATURES)
    batches = [FEATURES[i : i + 100] for i in range(0, 1_001, 100)]
    assert len(batches[-1]) == 1
    for order in (1, -1):
        streamed = Moments.empty(5)
        for batch in batches[::order]:
            streamed = streamed.add(batch)
        assert_equal(streamed, whole, rtol=1e-11)


def test_hosts_merge_to_the_whole():
    parts = [Moments.of(part) for part in np.split(FEATURES, [3, 3, 700])]
    a, empty, b, c = parts
    assert empty.count == 0
    for merged in (
        a.merge(empty).merge(b).merge(c),
        c.merge(b.merge(empty.merge(a))),
    ):
        assert_equal(merged, Moments.of(FEATURES), rtol=1e-11)


def test_long_inputs_are_taken_in_pieces(monkeypatch):
    whole = Moments.of(FEATURES)
    monkeypatch.setattr(moments, "ROWS_AT_A_TIME", 64)
    assert_equal(Moments.of(FEATURES), whole, rtol=1e-11)


def test_float32_features_are_summed_in_float64():
    tiny = np.full((100_000, 1), 0.1, np.float32)
    assert Moments.of(tiny).mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)


def test_one_sample_has_no_covariance():
    with pytest.raises(InputError, match="at least 2 samples, there are 1"):
        _ = Moments.of(FEATURES[:1]).covariance


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    broken = FEATURES.copy()
    broken[17, 3] = value
    with pytest.raises(InputError, match="not finite: look for NaN"):
        Moments.of(broken)


def test_features_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"\(2, 4\) where \[n, 5\]"):
        Moments.empty(5).add(FEATURES[:2, :4])
    with pytest.raises(InputError, match="of 5 and of 4 features do not merge"):
        Moments.of(FEATURES).merge(Moments.of(FEATURES[:, :4]))


def test_the_cache_computes_once_for_each_content(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return Moments.of(FEATURES)

    folder = tmp_path / "new"
    first = moments.cached(folder, CONTENT, compute)
    again = moments.cached(folder, CONTENT, compute)
    assert len(calls) == 1
    for stored in (first, again):
        for name, value in dataclasses.asdict(Moments.of(FEATURES)).items():
            np.testing.assert_array_equal(getattr(stored, name), value)
    moments.cached(folder, CONTENT[::-1], compute)
    assert len(calls) == 2
    assert len(list(folder.iterdir())) == 2  # and no partial file


def test_a_failed_save_leaves_no_moments(tmp_path, monkeypatch):
    def half(file, **_):
        file.write(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        moments.save(tmp_path, CONTENT, Moments.of(FEATURES))
    with pytest.raises(InputError, match="holds no moments"):
        moments.load(tmp_path, CONTENT)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = moments.save(tmp_path, CONTENT, Moments.of(FEATURES))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{path.name}.*delete it"):
        moments.cached(tmp_path, CONTENT, lambda: pytest.fail("computed"))


def test_another_kind_of_file_is_named(tmp_path):
    path = moments.save(tmp_path, CONTENT, Moments.of(FEATURES))
    with open(path, "wb") as file:
        np.save(file, FEATURES)
    with pytest.raises(InputError, match="holds no moments"):
        moments.load(tmp_path, CONTENT)


def test_a_path_is_no_hash(tmp_path):
    with pytest.raises(ValueError, match="hexadecimal"):
        moments.load(tmp_path, "../0123456789abcdef")
