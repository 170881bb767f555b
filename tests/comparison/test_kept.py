"""A comparison that was stopped goes on, and measures no prior twice."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from ncp_jax.comparison import fits, likelihoods, measures
from ncp_jax.comparison.kept import Kept
from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.ex_post.ncp import Pooled
from ncp_jax.records import folder_lock
from tests.comparison.test_compare import VAE, Coins, Moments, Over, Tilt, compared


def test_only_what_is_missing_is_measured(tmp_path):
    asked = []

    def measure(names):
        asked.append(list(names))
        return {name: [0.1, float("inf"), None] for name in names}

    kept = Kept(tmp_path, [1], {"a": "hash of a", "b": "hash of b"})
    first = kept.each("sums", ["a"], measure)
    assert kept.each("sums", ["a", "b", "c"], measure) == dict.fromkeys(
        "abc", first["a"]
    )
    kept.each("sums", ["c"], measure)  # nothing says what c is: measured anew
    kept.on("more").each("sums", ["a"], measure)
    kept.each("others", ["a"], measure)
    Kept(tmp_path, [1], {"a": "hash of another"}).each("sums", ["a"], measure)
    assert asked == [["a"], ["b", "c"], ["c"], ["a"], ["a"], ["a"]]
    assert kept.one("sums", "b", lambda: 1 / 0) == first["a"]


@pytest.mark.parametrize("content", ["", "[1]", '{"hash'])
def test_a_file_that_cannot_be_read_is_written_anew(tmp_path, content):
    kept = Kept(tmp_path, None, {"a": "hash"})
    kept.one("sums", "a", lambda: 1)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert kept.one("sums", "a", lambda: 2) == 2
    assert json.loads(path.read_text()) == {"hash": 2}


def test_a_stopped_comparison_goes_on(tmp_path, monkeypatch):
    """Two batches of likelihoods, log Z and draws of three fits."""
    priors = {"moments": Moments(50), "tilt": Tilt()}
    whole = compared(tmp_path / "whole", priors)

    calls = []

    def stops(name, at):
        function = getattr(*name)

        def stopped(*args, **kwargs):
            calls.append(name[1])
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        monkeypatch.setattr(*name, stopped)

    folder = tmp_path / "stopped"
    for name, at in [((likelihoods, "_log_sums"), 2), ((measures, "measure"), 2)]:
        calls.clear()
        with monkeypatch.context():
            stops(name, at)
            with pytest.raises(KeyboardInterrupt):
                compared(folder, priors)
        monkeypatch.undo()
    calls.clear()
    stops((likelihoods, "_log_sums"), 99)
    stops((likelihoods, "log_z"), 99)
    stops((measures, "measure"), 99)
    again = compared(folder, priors)
    assert calls == ["measure"] * 2  # of the last fit, and of the floor
    _assert_equal(again, whole)
    more = compared(folder, {"gaussian": {}, **priors})
    assert calls[2:] == ["_log_sums"] * 2 + ["measure"] * 2  # of the new one alone
    _assert_equal(more, whole)


def _assert_equal(some, others):
    """All but what is of the clock; those of `others`."""
    for name, row in others.results.items():
        for of_fit, other in zip(some.results[name].of_fits, row.of_fits, strict=True):
            of_clock = {"fit_seconds", "sampling_seconds"}
            kept = other.keys() - of_clock
            assert {n: of_fit[n] for n in kept} == {n: other[n] for n in kept}
    assert some.nll_base == others.nll_base and some.floor == others.floor


def test_other_examples_or_keys_are_measured_anew(tmp_path, monkeypatch):
    priors = {"tilt": Tilt()}
    compared(tmp_path, priors)
    calls = []
    measure = likelihoods._log_sums
    monkeypatch.setattr(
        likelihoods, "_log_sums", lambda *args: calls.append(0) or measure(*args)
    )
    compared(tmp_path, priors)
    assert not calls
    compared(tmp_path, priors, key=jax.random.key(1))
    assert len(calls) == 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tempered(Coins):
    """Whose decoder has a setting that is no array."""

    temperature: float = dataclasses.field(default=1.0, metadata={"static": True})

    def decode(self, carry):
        return super().decode(carry / self.temperature)


def test_another_decoder_of_the_same_arrays_is_measured_anew(tmp_path):
    of_folders = {}
    for temperature, place in [(1.0, "a"), (2.0, "a"), (2.0, "b")]:
        vae = Tempered(VAE.weights, temperature)
        found = compared(tmp_path / place, {"tilt": Tilt()}, vae=vae)
        of_folders[temperature, place] = found.nll_base
    assert of_folders[2.0, "a"] == of_folders[2.0, "b"] != of_folders[1.0, "a"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wide(Coins):
    """Whose prior has a setting that is no array."""

    std: float = dataclasses.field(default=1.0, metadata={"static": True})

    def prior(self, block, k, carry):
        found = super().prior(block, k, carry)
        return found._replace(base=found.base.tempered(self.std))


def test_another_prior_of_the_same_arrays_is_measured_anew(tmp_path):
    of_folders = {}
    for std, place in [(1.0, "a"), (2.0, "a"), (2.0, "b")]:
        vae = Wide(VAE.weights, std)
        found = compared(tmp_path / place, {"gaussian": {}}, vae=vae)
        of_folders[std, place] = found.nll_base
    assert of_folders[2.0, "a"] == of_folders[2.0, "b"] != of_folders[1.0, "a"]


def test_a_fitted_part_with_other_static_fields_is_another_one():
    normal = Gaussian(jnp.zeros(2), jnp.ones(2))
    parts = [Pooled(normal, normal, jnp.ones(()), n) for n in (5, 6, 6)]
    contents = [fits.over(Over(None), {"base": part}).base.content for part in parts]
    assert contents[0] != contents[1] == contents[2]


def test_one_process_at_a_time_writes_to_a_folder(tmp_path):
    with (
        folder_lock.held(tmp_path, "folder"),
        pytest.raises(InputError, match=r"folder=.* is in use by another process"),
    ):
        compared(tmp_path, {"tilt": Tilt()})
