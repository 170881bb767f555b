"""Numbers that no prior could be fitted to are refused before anything is fitted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.training.ncp import preparation
from ncp_jax.training.ncp.returned_numbers import check_numbers
from tests.oracles import ChainVAE

X = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)


def made(std=0.5, mean=0.0, std_of_x=1.0, **more):
    """q(z | x) of one mean and std for all z; x is z and a zero."""

    def encoder(_, x):
        return ncp_jax.Normal(x[:, :2] + mean, jnp.full((len(x), 2), std))

    def decoder(_, z):
        x = jnp.pad(z, ((0, 0), (0, 1)))
        return ncp_jax.Normal(x, jnp.full_like(x, std_of_x))

    return ncp_jax.EncoderDecoder(encoder, decoder, None, (2,), **more)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"std": 0.0}, r"0 or below, or NaN.* standard deviation; .*exp\(0\.5 \* v\)"),
        ({"std": -1.0}, "std that the encoder returns"),
        ({"std": np.nan}, r"0 or below, or NaN.*9 of 9"),
        ({"mean": np.nan}, "the encoder returns NaN or infinity"),
        ({"mean": np.inf}, "the encoder returns NaN or infinity"),
        ({"std_of_x": -1.0}, r"log p\(x \| z\) is NaN"),
    ],
)
def test_numbers_that_are_no_densities_are_named(numbers, message):
    with pytest.raises(ncp_jax.InputError, match=message):
        preparation.checked(made(**numbers), X, None)


def test_one_example_is_enough():
    def encoder(_, x):
        mean = jnp.where(x[:, :1] == X[4, 0], jnp.nan, x[:, :2])
        return ncp_jax.Normal(mean, jnp.ones_like(mean))

    with pytest.raises(ncp_jax.InputError, match=r"NaN or infinity.*1 of 9 examples"):
        preparation.checked(dataclasses.replace(made(), encoder=encoder), X, None)


def test_a_prepare_that_makes_no_numbers_is_blamed():
    with pytest.raises(ncp_jax.InputError, match="mend prepare"):
        preparation.checked(made(), X, lambda key, x: x / 0.0 * 0.0)


def test_a_posterior_that_is_a_pair_is_named():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Pair(ncp_jax.EncoderDecoder):
        def encode(self, x, key):
            q = self.encoder(None, x)
            z = q.sample(key)
            return ncp_jax.Encoding((z[None],), q.log_prob(z)[:, None])

        def posterior(self, x):
            q = self.encoder(None, x)
            return q.mean, jnp.log(q.std)

    fields = dataclasses.fields(ncp_jax.EncoderDecoder)
    pair = Pair(*(getattr(made(), field.name) for field in fields))
    with pytest.raises(ncp_jax.InputError, match=r"posterior\(x\) returns a tuple"):
        check_numbers(pair, jnp.asarray(X))


def test_points_may_have_no_width():
    preparation.checked(made(0.0, is_deterministic=True), X, None)
    with pytest.raises(ncp_jax.InputError, match="the encoder returns NaN"):
        preparation.checked(made(0.0, np.nan, is_deterministic=True), X, None)


def test_groups_are_looked_at_by_their_densities():
    """With several there is no `posterior`."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Wrong(ChainVAE):
        def encode(self, x, key):
            latents, log_q = super().encode(x, key)
            return ncp_jax.Encoding(latents, log_q.at[:, 1].set(jnp.nan))

    x = np.zeros((5, 1), np.float32)
    preparation.checked(ChainVAE(), x, None)
    with pytest.raises(ncp_jax.InputError, match="log_q of `encode`"):
        preparation.checked(Wrong(), x, None)


def test_an_autoencoder_has_a_ratio_and_no_likelihoods(capsys):
    vae = made(0.0, is_deterministic=True)
    x = np.repeat(X, 3, 0)
    sizes = {"num_steps": 2, "batch_size": 9, "progress": False}
    ncp = ncp_jax.fit(vae, x, key=jax.random.key(0), **sizes)
    sizes = {"num_log_z_draws": 100, "log_z_batch_size": 100}
    found = ncp_jax.evaluate(ncp, x, key=jax.random.key(1), **sizes)
    assert "No likelihoods" in capsys.readouterr().out
    assert "log_z" in found and "nll_base" not in found


def test_grey_numbers_under_a_bernoulli_get_a_remark(capsys):
    def decoder(_, z):
        return ncp_jax.Bernoulli(jnp.pad(z, ((0, 0), (0, 1))))

    vae = dataclasses.replace(made(), decoder=decoder)
    preparation.checked(vae, (X > 0).astype(np.float32), None)
    assert not capsys.readouterr().out
    preparation.checked(vae, np.clip(X, 0.0, 1.0), None)
    assert "no log-probabilities" in capsys.readouterr().out


def test_probabilities_in_the_place_of_logits_get_a_remark(capsys):
    def decoder(_, z):
        return ncp_jax.Bernoulli(jax.nn.sigmoid(jnp.pad(z, ((0, 0), (0, 1)))))

    vae = dataclasses.replace(made(), decoder=decoder)
    preparation.checked(vae, (X > 0).astype(np.float32), None)
    assert "are they probabilities? It takes logits" in capsys.readouterr().out


def test_a_decoder_of_other_arguments_is_told_them():
    vae = dataclasses.replace(made(), decoder=lambda z: ncp_jax.Bernoulli(z))
    with pytest.raises(ncp_jax.InputError, match=r"decoder\(variables, z\)\.$"):
        preparation.checked(vae, X, None)
    with pytest.raises(ncp_jax.InputError, match=r"give ncp_jax\.EncoderDecoder"):
        preparation.checked((jnp.ones(3),), X, None)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda x: x, "raises TypeError: .* takes 1 positional argument"),
        (lambda key, x: np.asarray(x), "raises TracerArrayConversionError"),
    ],
)
def test_a_prepare_that_cannot_be_compiled_is_blamed(prepare, said):
    with pytest.raises(ncp_jax.InputError, match=r"\(key, stored\) -> x .*" + said):
        preparation.checked(made(), X, prepare)


def rare(where, n=200):
    """Examples of which the one at 150 is encoded, or decoded, to NaN."""
    x = np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)
    x[150] = 9.0

    def encoder(_, x):
        mean = jnp.where((x[:, :1] == 9.0) & (where == "encoder"), jnp.nan, x[:, :2])
        return ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))

    def decoder(_, z):
        is_far = jnp.any(jnp.abs(z) > 2.0, axis=1, keepdims=True)
        mean = jnp.where(is_far & (where == "decoder"), jnp.nan, z)
        return ncp_jax.Normal(jnp.pad(mean, ((0, 0), (0, 1))), jnp.ones((len(z), 3)))

    return x, ncp_jax.EncoderDecoder(encoder, decoder, None, (2,))


def test_nan_of_a_rare_example_is_traced_to_it(key):
    """It lies behind those that are looked at first."""
    x, vae = rare("encoder")
    hint = r"\[0:200\]: the encoder returns NaN or infinity.*1 of 200"
    with pytest.raises(ncp_jax.InputError, match="train" + hint):
        ncp_jax.fit(vae, x, valid=x[:100], key=key, num_steps=40, batch_size=200)
    with pytest.raises(ncp_jax.InputError, match="valid" + hint):
        ncp_jax.fit(vae, x[:100], valid=x, key=key, num_steps=40, batch_size=100)
    ncp = ncp_jax.fit(vae, x[:100], valid=x[:50], key=key, num_steps=2, batch_size=100)
    with pytest.raises(ncp_jax.InputError, match="test" + hint):
        ncp_jax.evaluate(ncp, x, key=key, num_log_z_draws=1_000)
    with pytest.raises(ncp_jax.InputError, match=r"encoder .*of 1 of 200 examples"):
        ncp_jax.compare(vae, x, x[:50], x[:50], priors=["gaussian", "gmm"], key=key)


def test_a_decoder_is_blamed_for_its_own_nan(key):
    _, vae = rare("decoder")
    ncp = ncp_jax.NCPPrior(vae, None, (None,))
    with pytest.raises(ncp_jax.InputError, match="look at its decoder"):
        ncp_jax.sample(ncp, key, 64, ncp_jax.Base())
