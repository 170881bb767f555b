"""`ncp_jax.compare` on a VAE that is not ours: numbers, a page, a fit that goes on."""

import dataclasses
import json
import pickle
import signal
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.comparison import compare as comparison
from ncp_jax.comparison import fits, protocol, results
from ncp_jax.comparison.settings import ComparisonSettings, checked
from ncp_jax.errors import InputError
from ncp_jax.pages import priors_page
from ncp_jax.priors.ex_post import ebm, ncp
from ncp_jax.priors.ex_post.contract import Encodings, with_base
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.ex_post.vamp import DiagonalMixture
from ncp_jax.training.loop import Preempted
from tests.comparison.test_likelihoods import Tilted
from tests.oracles import ChainVAE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coins:
    """z ~ N(0, I) in the plane, pictures [2, 2, 1] of zeros and ones; q is off p."""

    weights: jax.Array  # [2, 4]
    blocks = (ncp_jax.Block(1, (2,), (0,)),)

    def posterior(self, x):
        mean = (x.reshape(len(x), -1) - 0.5) @ self.weights.T + 1.3
        return ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))

    def encode(self, x, key):
        q = self.posterior(x)
        z = q.sample(key)
        return ncp_jax.Encoding((z[None],), q.log_prob(z)[:, None])

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        normal = ncp_jax.Normal(carry, jnp.ones_like(carry))
        return ncp_jax.GroupPrior(normal, carry[:, :0])

    def absorb(self, block, k, carry, z_k):
        return z_k

    def decode(self, carry):
        return ncp_jax.Bernoulli((carry @ self.weights).reshape(-1, 2, 2, 1))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Fits a normal to the encodings, or to a few of them, chosen by its key."""

    num: int = 0
    log: Any = dataclasses.field(default=None, repr=False)

    def __call__(self, key, encodings: Encodings, folder=None):
        z = encodings.train.reshape(-1, 2)
        rows = jax.random.permutation(key, len(z))[: self.num or None]
        if self.log is not None:
            self.log.append(folder)
        return Gaussian(jnp.mean(z[rows], 0), jnp.std(z[rows], 0))


@dataclasses.dataclass(frozen=True)
class Tilt:
    """The same mean as a ratio, so a density that is known up to log Z."""

    def __call__(self, key, encodings, folder=None):
        return Tilted(encodings.base, jnp.mean(encodings.train))


@dataclasses.dataclass(frozen=True)
class Over:
    """The tilt over another prior, which it fits first."""

    base: Any

    def __call__(self, key, encodings, folder=None):
        encodings = with_base(self.base, key, encodings, folder)
        return Tilted(encodings.base, jnp.mean(encodings.train))


@dataclasses.dataclass(frozen=True)
class Memory:
    """A narrow normal around every training encoding."""

    def __call__(self, key, encodings, folder=None):
        means = encodings.train.reshape(-1, 2)
        log_stds = jnp.full_like(means, jnp.log(0.02))
        return DiagonalMixture(jnp.zeros(len(means)), means, log_stds)


SETTINGS = ncp_jax.ComparisonSettings(
    num_encodings=4,
    max_examples=40,
    num_importance_samples=20,
    chunk_size=10,
    batch_size=20,
    num_log_z_draws=4_000,
    log_z_batch_size=2_000,
    num_samples=100,
    sample_batch_size=50,
    num_mmd_samples=60,
    num_permutations=50,
    num_neighbour_queries=20,
)


def data():
    generator = np.random.default_rng(0)
    return [
        generator.integers(256, size=(n, 2, 2, 1), dtype=np.uint8)
        for n in (200, 50, 60)
    ]


VAE = Coins(jnp.asarray([[1.0, 0.5, -0.5, 1.0], [0.5, -1.0, 1.0, 0.0]]))


def compared(folder=None, priors=None, key=None, vae=VAE, **more):
    more = {"settings": SETTINGS} | more
    return ncp_jax.compare(
        vae,
        *data(),
        priors=priors or {"gaussian": {}, "moments": Moments(50), "tilt": Tilt()},
        key=jax.random.key(0) if key is None else key,
        prepare=ncp_jax.binarize,
        folder=folder,
        **more,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return folder, compared(folder, num_fits=2)


def test_gains_are_over_the_vae_s_own_prior(found):
    _, compared = found
    results = compared.results
    assert list(results) == ["gaussian", "moments", "tilt"]
    base = results["gaussian"].metrics
    assert base["gain"].value == 0.0 and base["gain"].stderr == 0.0
    assert base["nll"] == compared.nll_base and base["nll"].n == 40
    about = compared.about
    assert about["fitted_by"]["moments"] == "Moments(num=50)"
    assert (about["num_train"], about["num_valid"]) == tuple(
        len(split) for split in data()[:2]
    )
    for name in ("moments", "tilt"):  # q is about (1.3, 1.3) off
        gain = results[name].metrics["gain"]
        assert gain.value > 3 * gain.stderr > 0
        difference = base["nll"].value - results[name].metrics["nll"].value
        assert gain.value == pytest.approx(difference, abs=1e-5)
    assert results["tilt"].density == "up to log Z"
    assert results["tilt"].metrics["log_z"].value == pytest.approx(1.69, abs=0.4)


def test_what_is_printed_is_a_table_and_no_weights(found):
    _, compared = found
    head, *rows = str(compared).splitlines()
    assert repr(compared) == str(compared) and len(rows) == 3
    assert "Gain of encodings (nats)" in head and head.endswith("1,000 draws")
    record = json.loads(json.dumps(compared.as_json()))
    assert [row.split()[0] for row in rows] == priors_page.ranked(record["priors"])
    assert "Array" not in repr(compared.results["tilt"])


def test_an_autoencoder_of_two_functions_is_ranked_by_its_draws():
    def encoder(w, x):
        mean = (x.reshape(len(x), -1) - 0.5) @ w.T + 1.3
        return ncp_jax.Normal(mean, jnp.zeros_like(mean))

    def decoder(w, z):
        return ncp_jax.Bernoulli((z @ w).reshape(-1, 2, 2, 1))

    vae = ncp_jax.EncoderDecoder(
        encoder, decoder, VAE.weights, (2,), is_deterministic=True
    )
    found = compared(priors={"gaussian": {}, "moments": Moments()}, vae=vae)
    assert found.nll_base is None
    for row in found.results.values():
        assert {"gain", "nll"}.isdisjoint(row.metrics) and "gain_valid" in row.metrics
    assert [line.split()[0] for line in str(found).splitlines()[1:]] == [
        "moments",
        "gaussian",
    ]


def test_a_line_says_what_to_choose_by_and_what_to_report(found):
    _, compared = found
    gain = results.Estimate(1.0, 0.5, 9, "nats")
    row = compared.results["tilt"]
    line = protocol._line("tilt", row)
    for name in ("gain_valid", "gain"):
        assert f"{row.metrics[name].value:.3f} ±" in line
    seconds = {"sampling_seconds": row.metrics["sampling_seconds"]}
    of_points = dataclasses.replace(row, metrics={**seconds, "gain_valid": gain})
    said = protocol._line("tilt", of_points)
    assert ": gain of encodings 1.000 ± 0.980 nats, " in said
    assert "no likelihood" in protocol._line(
        "tilt", dataclasses.replace(row, metrics=seconds)
    )


def test_the_winner_draws_pictures(found, key):
    _, compared = found
    for name in compared.results:
        out = compared.draw(name, key, 70)
        (z,) = out.latents
        assert out.images.shape == (70, 2, 2, 1) and z.shape == (1, 70, 2)
        np.testing.assert_allclose(out.images, VAE.decode(z[0]).mean, rtol=1e-5)
    np.testing.assert_allclose(z.mean(1), [[1.3, 1.3]], atol=0.6)
    again = pickle.loads(pickle.dumps(compared)).draw("tilt", key, 70)
    np.testing.assert_array_equal(again.images, out.images)


def test_fits_have_their_own_numbers_and_a_spread(found):
    _, compared = found
    of_name = compared.results["moments"]
    gains = [each["gain"].value for each in of_name.of_fits]
    assert gains[0] != gains[1]
    assert of_name.spreads["gain"] == pytest.approx(np.std(gains, ddof=1))
    assert of_name.metrics["gain"].value == pytest.approx(np.mean(gains), rel=1e-5)
    # The same examples for both: the error is not smaller by the root of two.
    alone = min(each["gain"].stderr for each in of_name.of_fits)
    assert of_name.metrics["gain"].stderr > 0.9 * alone
    near = [each["nearer_than_held_out"] for each in of_name.of_fits]
    of_mean = of_name.metrics["nearer_than_held_out"].stderr
    assert of_mean == pytest.approx(np.mean([e.stderr for e in near]))  # likewise


@pytest.mark.parametrize("name", ["gain_valid", "gain_train"])
def test_the_gain_of_encodings_is_measured_on_both_splits(found, name):
    _, compared = found
    for row in compared.results.values():
        assert [fit[name].n for fit in row.of_fits] == [50, 50]
    base = compared.results["gaussian"].metrics[name]
    assert base.value == base.stderr == 0.0
    gain = compared.results["moments"].metrics[name]
    assert gain.value > 3 * gain.stderr > 0


def test_what_has_over_fitted_gains_more_on_training_encodings():
    metrics = compared(priors={"memory": Memory()}).results["memory"].metrics
    assert metrics["gain_train"].value > metrics["gain_valid"].value + 0.5


def test_samples_and_costs_are_measured(found):
    _, compared = found
    metrics = compared.results["moments"].metrics
    names = {"mmd", "mmd_p", "nearer_than_held_out", "sampling_seconds", "fit_seconds"}
    assert names | {"num_bytes", "num_parameters"} <= metrics.keys()
    assert metrics["num_parameters"].value == 4
    assert metrics["sampling_seconds"].value > 0
    worse = compared.results["gaussian"].metrics["mmd"]
    assert worse.value - metrics["mmd"].value > 4 * worse.stderr
    assert {"mmd", "mmd_p"} == compared.floor.keys()  # near to their own originals


def test_the_page_holds_every_prior_by_gain(found):
    folder, compared = found
    assert compared.page == folder / "report" / "priors.html"
    html = compared.page.read_text()
    rows = [row.partition("<small>")[0][3:] for row in html.split("<tr><td>")[1:4]]
    record = json.loads((folder / "results.json").read_text())["priors"]
    assert rows == priors_page.ranked(record["priors"]) and rows[-1] == "gaussian"
    assert record == json.loads(json.dumps(compared.as_json()))
    assert html.count("<img") == 4  # gain against cost, and pictures of each
    assert "Posterior draws" in html and "60 test" not in html and "40 test" in html
    assert (folder / "priors" / "tilt.png").exists()


def test_pictures_are_of_the_settings_that_were_asked_for(tmp_path):
    """Those of settings that were tried before are found again with their numbers."""
    path, shown = tmp_path / "priors" / "mine.png", []
    for scale in (50, 5_000, 50):
        compared(tmp_path, {"mine": Moments(scale)})
        shown.append(path.read_bytes())
    assert shown[0] == shown[2] != shown[1]


def test_a_fit_that_is_there_keeps_its_seconds(tmp_path, key):
    log: list = []
    encodings = Encodings(jnp.ones((3, 2, 2)), jnp.ones((1, 1, 2)), None)
    first = fits.fit("moments", Moments(log=log), key, encodings, tmp_path)
    again = fits.fit("moments", Moments(log=log), key, encodings, tmp_path)
    assert first.seconds == again.seconds and log[0] == log[1]
    other = fits.fit("moments", Moments(5, log), key, encodings, tmp_path)
    assert log[2] != log[0] and other.seconds != first.seconds  # beside the first


def test_a_fit_that_was_stopped_counts_its_seconds(tmp_path, key):
    class Stops:
        def __call__(self, key, encodings, folder):
            if not (folder / "stopped").exists():
                (folder / "stopped").touch()
                raise KeyboardInterrupt
            return Gaussian(jnp.zeros(2), jnp.ones(2))

        def __repr__(self):
            return "Stops"

    encodings = Encodings(jnp.ones((3, 2, 2)), jnp.ones((1, 1, 2)), None)
    with pytest.raises(KeyboardInterrupt):
        fits.fit("stops", Stops(), key, encodings, tmp_path)
    (record,) = tmp_path.glob("*.json")
    before = json.loads(record.read_text())
    assert not before["is_done"] and before["seconds"] > 0
    done = fits.fit("stops", Stops(), key, encodings, tmp_path)
    assert done.seconds > before["seconds"]


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        (["gausian"], r"no prior 'gausian'.*Did you mean 'gaussian'"),
        (["GMM"], r"no prior 'GMM'.*Did you mean 'gmm'.* 'ncp_deep_and_auto"),
        (["ncp_deep_and_autoregresive"], "Did you mean 'ncp_deep_and_autoregressive'"),
        ("gaussian", r"priors must hold names.*: write \('gaussian',\)"),
        ([], r"priors must hold names"),
        ({"": Moments()}, "a name is text without '/'.* got ''"),
        ({"of/mine": Moments()}, "a name is text without '/'.* got 'of/mine'"),
        ([3], "a name is text without '/'.* got 3"),
        ({"gaussian": {"widht": 3}}, r"'gaussian' has no setting 'widht'"),
        ({"gmm": {"n_components": (3,)}}, "Did you mean 'num_components'"),
        ({"ncp": {"num_steps": 5}}, "Did you mean {'training': {'num_steps': ...}}"),
        ({"ncp": {"training": {"learning_rate": 0}}}, "learning_rate' .* above 0"),
        ({"his": {"step_size": 0.0}}, "step_size' takes .* above 0"),
        ({"ncp": {"negative_weight": 0.5}}, "negative_weight' takes numbers from 1 on"),
        ({"ncp": {"activation": "one_hot"}}, "jax.nn has no activation 'one_hot'"),
        ({"ncp": {"base": {"num_components": (3,)}}}, "base' takes what fits a prior"),
        ({"flow": {"num_bins": 1_001}}, "num_bins must be below 1,000"),
    ],
)
def test_what_is_no_prior_is_named(priors, message):
    with pytest.raises(InputError, match=message):
        comparison.fits_of(priors)


def test_settings_are_checked_before_directions_are_looked_for():
    with pytest.raises(InputError, match="no setting 'num_bin'"):
        comparison.fits_of({"flow": {"num_bin": 5}}, is_grouped=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, r"num_samples must be an integer in \[1, inf\), got 0"),
        ({"num_samples": 1e4}, "num_samples must be an integer in .* got 10000.0"),
        ({"max_examples": -1}, r"max_examples must be .* in \[0, inf\), got -1"),
    ],
)
def test_how_much_is_measured_is_checked(settings, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SETTINGS, **settings)
    with pytest.raises(InputError, match=r"num_fits must be .* \[1, inf\), got 0"):
        compared(num_fits=0)


def test_settings_may_be_a_mapping():
    changed = checked({"num_samples": 7})
    assert changed == ComparisonSettings(num_samples=7)
    assert checked(None) == ComparisonSettings()
    assert checked(SETTINGS) is SETTINGS
    with pytest.raises(InputError, match=r"'num_sample'.* mean 'num_samples'"):
        compared(settings={"num_sample": 7})
    with pytest.raises(InputError, match="settings must be ComparisonSettings, or a"):
        compared(settings=7)


def test_numbers_may_be_numpy_s():
    found = dataclasses.replace(SETTINGS, num_samples=np.int64(100))
    assert json.dumps(dataclasses.asdict(found)) and found == SETTINGS


def test_examples_of_all_splits_must_be_alike():
    """One `prepare` reads them all: grey values are no numbers from 0 to 1."""
    train, valid, test = data()
    with pytest.raises(InputError, match=r"test holds .* float32, train of .* uint8"):
        ncp_jax.compare(VAE, train, valid, test / 255, key=jax.random.key(0))
    with pytest.raises(InputError, match=r"valid holds examples of shape \(2, 2\)"):
        ncp_jax.compare(VAE, train, valid[..., 0], test, key=jax.random.key(0))


def test_a_folder_that_cannot_be_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="folder=gs://a/b is an address"):
        compared("gs://a/b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*/file: .*File exists"):
        compared(tmp_path / "file")


def test_a_prior_is_built_on_the_one_that_is_compared():
    """NCP over another mixture than the one beside it would compare the mixtures."""
    for how in ({"num_components": (3,)}, Moments(50)):
        fits_of = comparison.fits_of({"ncp_over_gmm": {}, "gmm": how})
        assert fits_of["ncp_over_gmm"].base == fits_of["gmm"]


def test_settings_that_are_ours_may_have_another_name():
    assert comparison.fits_of({"lebm": ebm.LEBM}) == {"lebm": ebm.LEBM}


def test_what_a_fit_returns_must_be_a_prior():
    with pytest.raises(InputError, match=r"'nothing'.*dict must have `density`"):
        compared(priors={"nothing": lambda key, encodings, folder: {}})


@pytest.mark.parametrize(
    ("density", "message"),
    [
        ("about right", "must be one of"),
        ("up to log Z", r"must have `log_z_weights\(keys\)`"),  # gains would lack log Z
    ],
)
def test_a_density_is_what_it_says(density, message):
    class Prior(Gaussian):
        pass

    Prior.density = density
    how = lambda key, encodings, folder: Prior(jnp.zeros(2), jnp.ones(2))  # noqa: E731
    with pytest.raises(InputError, match=f"'mine'.*{message}"):
        compared(priors={"mine": how})


def test_a_prior_that_compiled_functions_cannot_take_is_named(key):
    class Mine:
        density = "exact"

        def sample(self, keys):
            return jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)

        def log_prob(self, z, key=None):
            return -jnp.sum(z**2, 1)

    encodings = Encodings(jnp.ones((3, 2, 2)), jnp.ones((1, 1, 2)), None)
    with pytest.raises(InputError, match="'mine': Mine must be a pytree of arrays"):
        fits.fit("mine", lambda *given: Mine(), key, encodings)


def test_the_numbers_of_a_prior_are_counted_where_they_are_floats(key):
    assert fits.num_parameters(Gaussian(0.5, jnp.ones(2))) == 3


def test_parts_of_settings_with_arrays_are_told_apart():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        mean: np.ndarray

        def __call__(self, key, encodings, folder=None):
            return Gaussian(jnp.asarray(self.mean), jnp.ones(2))

    how = {
        "over": ncp.Settings(base=Mine(np.zeros(2))),
        "same": Mine(np.zeros(2)),
        "other": Mine(np.ones(2)),
    }
    assert protocol._parts_first({**how, "no": Mine})["over"] == {"base": "same"}


def test_a_mixture_of_posteriors_of_several_groups_is_refused():
    with pytest.raises(InputError, match="vamp is a mixture"):
        ncp_jax.compare(
            ChainVAE(), *data(), priors=("gmm", "vamp"), key=jax.random.key(0)
        )


def test_vamp_needs_a_posterior_and_is_else_left_out(capsys):
    class Mute(Coins):
        posterior = None

        def encode(self, x, key):
            return VAE.encode(x, key)

    mute = jax.tree_util.register_dataclass(Mute)(VAE.weights)
    with pytest.raises(InputError, match=r"give your VAE a method posterior\(x\)"):
        compared(vae=mute, priors=("gaussian", "vamp"))
    with pytest.raises(InputError, match=r"ncp_over_vamp is a mixture.* or made with"):
        compared(vae=mute, priors=("gaussian", "ncp_over_vamp"))
    how = comparison.fits_of(comparison.ex_post.NAMES)
    comparison._without_vamp(how, is_default=True, is_point=False)
    assert how.keys() == set(comparison.ex_post.NAMES) - {"vamp"}
    assert "vamp is left out" in capsys.readouterr().out


def test_vamp_is_left_out_of_an_autoencoder_s_priors(monkeypatch, capsys):
    def encoder(weights, x):
        mean = x.reshape(len(x), -1) @ weights.T
        return ncp_jax.Normal(mean, jnp.zeros_like(mean))

    def decoder(weights, z):
        return ncp_jax.Bernoulli((z @ weights).reshape(-1, 2, 2, 1))

    points = ncp_jax.EncoderDecoder(
        encoder, decoder, VAE.weights, latent_shape=(2,), is_deterministic=True
    )
    asked = []
    monkeypatch.setattr(protocol, "run", lambda *given, **more: asked.append(given[2]))
    train, *others = data()
    many = np.concatenate([train] * 3)[:500]
    ncp_jax.compare(
        points, many, *others, key=jax.random.key(0), prepare=ncp_jax.binarize
    )
    assert set(asked[0]) == set(comparison.ex_post.NAMES) - {"vamp"}
    assert "since its encodings are points" in capsys.readouterr().out
    with pytest.raises(InputError, match="made with one: leave 'vamp' out of priors"):
        compared(vae=points, priors=("gaussian", "vamp"))


def test_ctrl_c_is_a_keyboard_interrupt(monkeypatch):
    def stopped(*given, **more):
        raise Preempted(signal.SIGINT, "ncp is saved at step 100 of 500")

    monkeypatch.setattr(protocol, "run", stopped)
    with pytest.raises(KeyboardInterrupt, match="ncp is saved at step 100 of 500"):
        compared()


def test_vamp_is_left_out_where_examples_are_few(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(protocol, "run", lambda *given, **more: asked.append(given[2]))
    for train in (data()[0], np.concatenate([data()[0]] * 3)[:500]):
        ncp_jax.compare(
            VAE, train, *data()[1:], key=jax.random.key(0), prepare=ncp_jax.binarize
        )
    few, enough = asked
    assert set(enough) == set(comparison.ex_post.NAMES) == {*few, "vamp"} != set(few)
    assert "vamp is left out, since it wants 500" in capsys.readouterr().out


def test_a_run_of_main_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="run of another kind"):
        compared(tmp_path)


def test_a_prior_stands_on_the_base_that_was_fitted_beside_it(tmp_path):
    log = []
    moments = Moments(50, log)
    priors = {"over": Over(moments), "moments": moments, "alone": Over(Moments(60))}
    found = compared(tmp_path, priors, num_fits=2).results
    assert [*found] == [*priors]  # though bases are fitted first
    assert [path.parent.name for path in log] == ["moments-0", "moments-1"]
    for fit, over in zip(found["moments"].priors, found["over"].priors, strict=True):
        chex.assert_trees_all_equal(over.base, fit)
    for of_base, of_over in zip(
        found["moments"].of_fits, found["over"].of_fits, strict=True
    ):
        assert of_over["fit_seconds"].value > of_base["fit_seconds"].value
    again = compared(tmp_path, priors, num_fits=2).results["over"]
    assert again.of_fits[0]["fit_seconds"] == found["over"].of_fits[0]["fit_seconds"]
