"""The public door: a VAE that is not ours, from its definition to a page."""

import functools
import json
import os
import pickle
import signal
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.models.discriminator_choice import MixedDiscriminator
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.records import folder_lock
from ncp_jax.training import run_log
from ncp_jax.training.ncp import fit as stage_two_fit
from ncp_jax.training.ncp import preparation
from tests.oracles import ThreeGroupVAE
from tests.statistics import assert_mean


class ThreeGroups(nn.Module):
    """z_1 [2], then z_2 and z_3 [2, 2, 1] given those before, pictures [4, 4, 1]."""

    blocks: ClassVar = (
        ncp_jax.Block(1, (2,), (0,)),
        ncp_jax.Block(2, (2, 2, 1), (2, 2, 1)),
    )

    def setup(self):
        self.q, self.lift, self.pixels = nn.Dense(10), nn.Dense(4), nn.Dense(16)
        self.gain = self.param("gain", lambda _: jnp.array([0.5, -0.5]))

    def __call__(self, x, key):
        self.encode(x, key)
        return self.decode(self.absorb(0, 0, self.root(len(x)), jnp.zeros((len(x), 2))))

    def encode(self, x, key):
        mean = self.q(x.reshape(len(x), -1)) + 1.0
        z = mean + 0.5 * jax.random.normal(key, mean.shape)
        each = jax.scipy.stats.norm.logpdf(z, mean, 0.5)
        log_q = [jnp.sum(part, 1) for part in jnp.split(each, (2, 6), axis=1)]
        maps = z[:, 2:].reshape(-1, 2, 2, 2, 1).swapaxes(0, 1)
        return ncp_jax.Encoding((z[None, :, :2], maps), jnp.stack(log_q, 1))

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2, 2, 1))

    def prior(self, block, k, carry):
        if block == 0:
            zeros = jnp.zeros((len(carry), 2))
            normal = ncp_jax.Normal(zeros, zeros + 1.0)
            return ncp_jax.GroupPrior(normal, zeros[:, :0])
        mean = self.gain[k] * carry
        return ncp_jax.GroupPrior(ncp_jax.Normal(mean, jnp.ones_like(mean)), carry)

    def absorb(self, block, k, carry, z_k):
        return self.lift(z_k).reshape(-1, 2, 2, 1) if block == 0 else carry + z_k

    def decode(self, carry):
        logits = self.pixels(carry.reshape(len(carry), -1)).reshape(-1, 4, 4, 1)
        return ncp_jax.Bernoulli(logits)


AFTER_ITS_DEFINITION = """
vae = ncp_jax.FrozenVAE(module, variables)
keys = jax.random.split(jax.random.key(0), 4)
prepare = ncp_jax.binarize  # zeros and ones, afresh at every use
ncp = ncp_jax.fit(vae, train, key=keys[0], prepare=prepare, num_steps=60,
                  steps_per_eval=30, learning_rate=0.02, discriminator=network)
out = ncp_jax.sample(ncp, keys[1], 20, ncp_jax.SIR(20, chunk_size=20))
numbers = ncp_jax.evaluate(ncp, test, key=keys[2], prepare=prepare, **sizes)
page = ncp_jax.report(ncp, folder, train=train, test=test, key=keys[3],
                      prepare=prepare, settings=settings)
"""
SIZES = {
    "num_importance_samples": 10,
    "chunk_size": 5,
    "num_snis_proposals": 5,
    "num_snis_samples": 2,
    "num_log_z_draws": 4_000,
    "log_z_batch_size": 2_000,
    "max_log_z_stderr": 0.0,
}
SETTINGS = {
    "sample.num_images": 12,
    "sample.num_proposals": 20,
    "evaluate.num_mmd_samples": 30,
    "evaluate.num_permutations": 20,
    "evaluate.num_neighbour_queries": 10,
    **{f"evaluate.{name}": value for name, value in SIZES.items()},
}


@functools.cache
def variables_of(module, shape):
    key, x = jax.random.key(1), jnp.zeros((1, *shape))
    return jax.jit(module.init)(key, x, key)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What the lines above leave behind."""
    generator = np.random.default_rng(0)
    names = {
        "jax": jax,
        "ncp_jax": ncp_jax,
        "module": ThreeGroups(),
        "variables": variables_of(ThreeGroups(), (4, 4, 1)),
        "train": generator.integers(256, size=(200, 4, 4, 1), dtype=np.uint8),
        "test": generator.integers(256, size=(50, 4, 4, 1), dtype=np.uint8),
        "network": ncp_jax.MLPDiscriminator((16,)),
        "folder": tmp_path_factory.mktemp("page"),
        "sizes": SIZES,
        "settings": SETTINGS,
    }
    exec(AFTER_ITS_DEFINITION, names)
    return names


def test_samples_numbers_and_a_page_in_fifteen_lines(finished):
    assert len(AFTER_ITS_DEFINITION.strip().splitlines()) <= 15
    out, numbers = finished["out"], finished["numbers"]
    assert out.images.shape == (20, 4, 4, 1)
    assert [z.shape for z in out.latents] == [(1, 20, 2), (2, 20, 2, 2, 1)]
    assert [info.ess.shape for info in out.infos] == [(1, 20), (2, 20)]
    assert numbers["gain_nats"].n == 50
    losses = [numbers[f"nce_loss/{k}"].value for k in range(3)]
    assert all(0 < loss < 1.3 for loss in losses)  # q is off: 1.386 would be no use


def test_the_page_holds_what_a_run_of_a_config_has(finished):
    page = finished["page"]
    assert page == finished["folder"] / "report" / "index.html"
    html = page.read_text()
    for heading in (
        "Samples",
        "Reconstructions",
        "Nearest neighbours",
        "Groups",
        "Log-ratio",
        "Latent groups: MMD",
    ):
        assert f"<h2>{heading}" in html or f">{heading}<" in html, heading
    assert "NCP-VAE on ThreeGroups" in html
    metrics = json.loads((finished["folder"] / "results.json").read_text())["metrics"]
    expected = {"nll_base", "nll_ncp", "sir_ess/2", "mmd_sir/1", "jsd/0"}
    assert metrics.keys() >= expected | {"nearer_than_held_out_sir"}
    with np.load(finished["folder"] / "samples" / "sir.npz") as stored:
        assert stored["latents_1"].shape == (12, 2, 2, 2, 1)  # in files pictures lead


def test_a_page_is_no_run_to_load(finished):
    with pytest.raises(ncp_jax.InputError, match=r"a folder of ncp_jax\.report"):
        ncp_jax.load(finished["folder"])


def test_another_page_may_replace_it_and_other_runs_are_safe(finished, tmp_path):
    again = functools.partial(
        ncp_jax.report,
        finished["ncp"],
        train=finished["train"],
        test=finished["test"],
        key=jax.random.key(9),
        prepare=ncp_jax.binarize,
    )
    with pytest.raises(ncp_jax.InputError, match=r"\['sample.proposals'\]; there are"):
        again(tmp_path / "a", settings={"sample.proposals": 3})
    with pytest.raises(ncp_jax.InputError, match=r"config\.sample\.samplers must"):
        again(tmp_path / "a", samplers=("hmc",))
    with pytest.raises(ncp_jax.InputError, match=r"test holds .* float32, train of .*"):
        again(tmp_path / "a", test=finished["test"] / 255)
    assert not (tmp_path / "a").exists()
    of_main = {"vae": {"model": {"name": "mlp"}}}
    (tmp_path / "config.json").write_text(json.dumps(of_main))
    with pytest.raises(ncp_jax.InputError, match=r"holds a run of main\.py"):
        again(tmp_path)


def test_the_door_offers_what_it_says(key):
    for name in ncp_jax.__all__:
        thing = getattr(ncp_jax, name)
        assert isinstance(thing, str) or thing.__doc__
    assert callable(ncp_jax.report)
    assert ncp_jax.__version__[0].isdigit()


# ---- fit


def points(n, seed=0):
    """Far from what the base prior of `ThreeGroupVAE` encodes to."""
    return np.random.default_rng(seed).normal(1.0, 2.0, (n, 3)).astype(np.float32)


VAE = ncp_jax.FrozenVAE(ThreeGroupVAE(), variables_of(ThreeGroupVAE(), (3,)))
FEW = {
    "num_steps": 40,
    "steps_per_eval": 10,
    "batch_size": 32,
    "discriminator": ncp_jax.MLPDiscriminator((8,)),
}


def fit(vae=VAE, **settings):
    settings = {"train": points(200), "key": jax.random.key(0), **FEW, **settings}
    return ncp_jax.fit(vae, **settings)


KEY, SIR = jax.random.key(5), ncp_jax.SIR(20)


@pytest.fixture(scope="module")
def fitted():
    return fit()


def assert_same(first, other):
    for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_prior_says_what_it_is_in_one_line(fitted):
    assert repr(fitted) == (
        "NCPPrior(ThreeGroupVAE, K=3, MLPDiscriminator with 147 weights in all)"
    )


@pytest.mark.parametrize("directions", [None, "auto"])
def test_a_prior_comes_back_from_a_pickle_without_the_data(directions):
    few = {"num_steps": 10, "discriminator": None}
    ncp = fit(**few, directions=directions)
    again = pickle.loads(pickle.dumps(ncp))
    assert_same(*(ncp_jax.sample(p, KEY, 3, SIR) for p in (ncp, again)))


def test_the_ratio_of_one_vector_is_kept_without_the_vae():
    functions = (lambda w, x: ncp_jax.Normal(x + w, jnp.ones_like(x)),) * 2
    vae = ncp_jax.EncoderDecoder(*functions, jnp.float32(1.0), latent_shape=(2,))
    ncp = fit(vae, train=np.zeros((40, 2), np.float32), num_steps=10)
    discriminator, params = pickle.loads(pickle.dumps((ncp.discriminator, ncp.params)))
    again = ncp_jax.NCPPrior(vae, discriminator, params)
    assert_same(*(ncp_jax.sample(p, KEY, 3, SIR) for p in (ncp, again)))


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ncp_jax.InputError, match="workdir=gs://bucket/x is an address"):
        fit(workdir="gs://bucket/x")
    assert not list(tmp_path.iterdir())


def test_a_stopped_fit_goes_on_to_the_same_bits(fitted, tmp_path, monkeypatch):
    progress = run_log.RunLog.progress

    def stop(log, step, *losses):
        progress(log, step, *losses)
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(run_log.RunLog, "progress", stop)
        with pytest.raises(KeyboardInterrupt, match="saved at step 20 of 40"):
            fit(workdir=tmp_path)
    assert_same(fit(workdir=tmp_path).params, fitted.params)
    steps = [r["step"] for r in run_log.read_metrics(tmp_path / "metrics.jsonl")]
    assert steps[-1] == 40 and len(steps) == len(set(steps)) * 2
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert_same(fit(workdir=tmp_path).params, fitted.params)  # complete: nothing to do
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    moved = jax.tree.map(lambda leaf: 1.01 * leaf, VAE)
    for what, changed in (
        ("learning_rate", {"learning_rate": 0.5}),
        ("discriminator", {"discriminator": ncp_jax.MLPDiscriminator((9,))}),
        ("vae", {"vae": moved}),
        ("train", {"train": points(200, seed=1)}),
        ("key", {"key": jax.random.key(1)}),
    ):
        with pytest.raises(ncp_jax.InputError, match=f"with another {what} "):
            fit(workdir=tmp_path, **changed)


class Scaled:
    """A `prepare` that is a method, whose name says nothing of its object."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, key, stored):
        return self.scale * stored

    prepare = __call__


def test_prepares_whose_values_are_hidden_are_told_apart():
    """By their names alone, the second call returned the first one's prior."""

    def compiled(scale):
        return jax.jit(lambda key, stored: scale * stored)

    def default(scale):
        return lambda key, stored, scale=scale: scale * stored

    def nested(scale):
        def inner(stored):
            return scale * stored

        return lambda key, stored: inner(stored)

    def method(scale):
        return Scaled(scale).prepare

    x = points(100)
    for make in (compiled, default, nested, method):
        one, again, other = (preparation.named(make(s), x) for s in (1.0, 1.0, 2.0))
        assert one == again != other


def test_a_folder_is_of_one_call_at_a_time(tmp_path):
    """Two at once wrote into one another's checkpoints."""
    is_refused = pytest.raises(ncp_jax.InputError, match="in use by another process")
    with folder_lock.held(tmp_path, "workdir"), is_refused:
        fit(workdir=tmp_path)
    assert not (tmp_path / "ncp").exists()


def test_prepares_of_other_values_are_told_apart():
    """By the class's name alone, the second call returned the first one's weights."""

    def scaled(key, stored, scale):
        return scale * stored

    def by(scale):
        return lambda key, stored: scale * stored

    names = [
        preparation.named(prepare, points(9))
        for scale in (1.0, 2.0)
        for prepare in (functools.partial(scaled, scale=scale), by(scale))
    ]
    assert len(set(names)) == 4


def test_keys_of_the_old_kind_give_the_same_prior(fitted):
    assert_same(fit(key=jax.random.PRNGKey(0)).params, fitted.params)


def test_training_ends_when_no_group_gets_better(capsys):
    fit(num_steps=4_000, patience=1, learning_rate=1e-9, ema_decay=0.0)
    shown = capsys.readouterr().out  # at once, not after all of them
    assert "ncp ends at step 20: validations get no better" in shown


def test_a_fit_without_progress_shows_none_and_keeps_its_metrics(tmp_path, capsys):
    fit(workdir=tmp_path, progress=False)
    shown = capsys.readouterr()
    assert not shown.out + shown.err
    assert run_log.read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 40


def test_what_is_held_out_is_a_tenth_and_not_trained_on(monkeypatch):
    """Validation sees 20 of 200 examples, training the 180 others."""
    seen = []

    def prepare(key, stored):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), stored)
        return stored

    train = points(200)
    fit(train=train, num_steps=10, prepare=prepare)
    jax.effects_barrier()
    rows = {tuple(row) for row in train.tolist()}
    valid = {tuple(r) for batch in seen if len(batch) == 20 for r in batch.tolist()}
    trained = {tuple(r) for batch in seen if len(batch) == 32 for r in batch.tolist()}
    assert len(valid) == 20 and trained and valid | trained <= rows
    assert not valid & trained


def test_samples_are_those_of_their_numbers(fitted, key):
    ten, four = (ncp_jax.sample(fitted, key, n, ncp_jax.Base()) for n in (10, 4))
    np.testing.assert_allclose(ten.images[:4], four.images, rtol=1e-5)
    np.testing.assert_allclose(ten.latents[0][:, :4], four.latents[0], rtol=1e-5)


def test_base_draws_are_of_the_base_prior(fitted, key):
    """z_1 ~ N(0, 1); a deviation 10 % off would be seen."""
    z = ncp_jax.sample(fitted, key, 4_096, ncp_jax.Base(), batch_size=4_096).latents[0]
    assert_mean(z[0] ** 2, 1.0, std=2**0.5)
    with pytest.raises(AssertionError):
        assert_mean(1.1**2 * z[0] ** 2, 1.0, std=2**0.5)


@pytest.mark.parametrize("read", ["vae", "nothing"])
def test_what_is_no_ncp_prior_is_named(fitted, key, read):
    other, hint = {
        "vae": (fitted.vae, r"got a \w+: `fit` one to it first"),
        "nothing": (None, "got a NoneType$"),
    }[read]
    with pytest.raises(ncp_jax.InputError, match=hint):
        ncp_jax.sample(other, key, 4)
    with pytest.raises(ncp_jax.InputError, match=hint):
        ncp_jax.evaluate(other, np.zeros((4, 1)), key=key)


def test_a_sampler_that_explodes_is_named(fitted, key):
    with pytest.raises(ncp_jax.InputError, match=r"Langevin.* left the finite"):
        ncp_jax.sample(fitted, key, 4, ncp_jax.Langevin(1e4, num_steps=60))


@pytest.mark.parametrize("sampler", ["sir", ncp_jax.SIR, None])
def test_what_is_no_sampler_is_named(fitted, key, sampler):
    with pytest.raises(ncp_jax.InputError, match=r"such as ncp_jax\.SIR\(1_000\)"):
        ncp_jax.sample(fitted, key, 4, sampler)


def pictures(n):
    return np.zeros((n, 4, 4, 1), np.uint8)


def with_nan(n):
    x = points(n)
    x[-2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": 0}, "key must be one PRNG key"),
        ({"train": points(1)}, "train holds one example"),
        ({"train": points(0)}, r"at least one example; got shape \(0, 3\)"),
        ({"train": np.array(["a"])}, "train must be an array"),
        ({"train": np.full((9, 3), 2)}, "type int64 need prepare="),
        ({"train": np.ones((9, 3), bool)}, "type bool are zeros and ones: give x.ast"),
        ({"train": with_nan(600)}, r"train\[598\] holds numbers that are not finite"),
        ({"valid": with_nan(9)}, r"valid\[7\] holds numbers that are not finite"),
        ({"valid": points(9)[:, :2]}, r"valid holds examples of shape \(2,\)"),
        ({"num_steps": 0}, r"num_steps must be an integer in \[1, inf\), got 0"),
        ({"num_steps": 40.0}, "num_steps must be an integer .* got 40.0"),
        ({"steps_per_eval": 0}, "steps_per_eval must be an integer in .* got 0"),
        ({"steps_per_eval": 2.5}, "steps_per_eval must be an integer in .* got 2.5"),
        ({"batch_size": 0}, "batch_size must be an integer in .* got 0"),
        ({"batch_size": 32.0}, "batch_size must be an integer in .* got 32.0"),
        ({"learning_rate": 0}, r"learning_rate must be a number in \(0, inf\), got 0"),
        ({"learning_rate": np.nan}, "learning_rate must be a number .* got nan"),
        ({"learning_rate": np.inf}, "learning_rate must be a number .* got inf"),
        ({"weight_decay": -1}, r"weight_decay must be a number in \[0, inf\), got -1"),
        ({"weight_decay": None}, "weight_decay must be a number .* got None"),
        ({"ema_decay": 1}, r"ema_decay must be a number in \[0, 1\), got 1"),
        ({"num_negatives": 0}, "num_negatives must be an integer in .* got 0"),
        ({"num_passes": 0}, "num_passes must be an integer in .* got 0"),
        ({"patience": -1}, r"patience must be an integer in \[0, inf\), got -1"),
        ({"ranking_weight": -1.0}, r"ranking_weight must be a number in \[0, inf\)"),
        ({"negative_weight": 0.5}, r"negative_weight must be a number in \[1, inf\)"),
        ({"select_by": "luck"}, "select_by must be one of"),
    ],
)
def test_what_cannot_be_fitted_is_said(settings, message):
    with pytest.raises(ncp_jax.InputError, match=message):
        fit(**settings)


def test_a_loss_that_is_not_finite_blames_an_argument():
    """There is neither a config nor, without a workdir, a checkpoint."""

    def prepare(key, stored):  # finite when the VAE is looked at
        is_first = jnp.all(jax.random.key_data(key) == 0)
        return stored.at[0].set(jnp.where(is_first, stored[0], jnp.nan))

    with pytest.raises(ncp_jax.InputError, match="is nan at step 0") as stopped:
        fit(prepare=prepare, valid=points(9))
    assert str(stopped.value).endswith("\nLower the learning rate (learning_rate).")


@pytest.mark.parametrize(
    ("weight_decay", "remedy"),
    [(0.0, "more num_steps or another learning_rate"), (0.1, "lower weight_decay")],
)
def test_a_constant_ratio_is_told_with_arguments(weight_decay, remedy, capsys):
    fit(num_steps=10, learning_rate=1e-9, weight_decay=weight_decay)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "log r of group 2 is constant" in line and remedy in line
    assert "config" not in line


def test_a_batch_of_all_examples_is_one_that_the_devices_share():
    class Mesh:
        size = 8

    size = functools.partial(stage_two_fit._batch_size, mesh=Mesh)
    assert [size(256, n) for n in (8, 90, 255, 300)] == [8, 88, 248, 256]
    with pytest.raises(ncp_jax.InputError, match="batch_size = 90 is not a multiple"):
        size(90, 90)
    with pytest.raises(ncp_jax.InputError, match="7 examples, fewer than the 8 dev"):
        size(256, 7)


def test_numbers_may_be_numpy_s(tmp_path):
    """A checkpoint, whose record is JSON, names them."""
    settings = {"num_steps": 10, "num_negatives": 2, "patience": 3, "batch_size": 32}
    rates = {"learning_rate": 0.25, "weight_decay": 0.5, "ema_decay": 0.75}
    of_numpy = {name: np.int64(value) for name, value in settings.items()}
    of_numpy |= {name: np.float32(value) for name, value in rates.items()}
    found = fit(workdir=tmp_path, **of_numpy)
    assert_same(fit(**settings, **rates).params, found.params)
    assert_same(fit(workdir=tmp_path, **settings, **rates).params, found.params)


def test_pictures_for_a_binary_likelihood_have_to_be_binarised():
    module = ThreeGroups()
    vae = ncp_jax.FrozenVAE(module, variables_of(module, (4, 4, 1)))
    with pytest.raises(ncp_jax.InputError, match=r"prepare=ncp_jax\.binarize"):
        fit(vae, train=pictures(20))
    bits = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4, 1) % 2
    with pytest.raises(ncp_jax.InputError, match=r"give x\.astype\(np\.float32\)"):
        fit(vae, train=bits, prepare=ncp_jax.binarize)


class Hidden:
    """Weights that JAX does not see."""

    def __init__(self, shift):
        self.shift = shift

    @property
    def blocks(self):
        return VAE.blocks

    def encode(self, x, key):
        return VAE.encode(x + self.shift, key)

    def __getattr__(self, name):
        return getattr(VAE, name)


def of_std(std):
    return ncp_jax.FrozenVAE(MLPVAE((3,), 2, likelihood_std=std), {"bias": jnp.ones(1)})


@pytest.mark.parametrize("make", [jax.tree_util.register_static(Hidden), of_std])
def test_a_vae_is_known_by_more_than_its_arrays(make):
    first, again, other = (
        preparation.identity(make(setting), points(9), preparation.as_stored)
        for setting in (0.5, 0.5, 1.0)
    )
    assert first == again != other


def test_the_losses_beyond_the_paper_s_are_there(fitted):
    ranked = fit(
        num_negatives=4, ranking_weight=1.0, negative_weight=2.0, select_by="gain"
    )
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (fitted, ranked)), strict=True)
    )


@pytest.mark.slow
def test_a_prior_that_was_plugged_in_can_be_timed(tmp_path):
    """With a network that has no dtype, on groups of two kinds."""
    network = MixedDiscriminator(
        ncp_jax.ResidualDiscriminator(4, "A"),
        ncp_jax.MLPDiscriminator((4,)),
        ((2, 2, 1),),
    )
    vae = ncp_jax.FrozenVAE(ThreeGroups(), variables_of(ThreeGroups(), (4, 4, 1)))
    settings = {"prepare": ncp_jax.binarize, "train": pictures(64)}
    ncp = fit(vae, **settings, discriminator=network, num_steps=10)
    timed = {
        "benchmark.num_images": (1,),
        "benchmark.num_proposals": (5, 20),
        "benchmark.num_langevin_steps": (2, 20),
        "benchmark.num_groups": (1, 2),
        "benchmark.num_chains": (1, 2),
        "benchmark.latent_dims": (2,),
        "benchmark.batch_size": 4,
        "benchmark.num_calls": 1,
    }
    ncp_jax.report(
        ncp,
        tmp_path,
        test=pictures(20),
        key=jax.random.key(1),
        settings=SETTINGS | timed,
        benchmark=True,
        **settings,
    )
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["samplers"]["weights"] == "trained"
    assert all(found[part]["rows"] for part in ("samplers", "alone", "stage_two"))
    assert (tmp_path / "benchmark.html").exists()
