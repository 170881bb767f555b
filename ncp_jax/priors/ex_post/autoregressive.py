"""One dimension after another: MADE with mixtures of normals (Germain et al., 2015)."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.priors.ex_post import fitting, gaussian
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.gaussian import Gaussian

Array = jax.Array
PyTree = Any

MIN_STD = 1e-3  # of a component, in standard deviations of the encodings

TRAINING = Training(num_steps=10_000, batch_size=256, learning_rate=3e-3)


class MaskedMLP(nn.Module):
    """From e [B, D] to p(e_d | e_<d) of every d at once.

    A unit of degree m sees e_1 .. e_m; the outputs of d see units of degrees below d.

    Attributes:
      dim: D.
      hidden_dims: widths.
      num_components: M, of each conditional.
    """

    dim: int
    hidden_dims: tuple[int, ...]
    num_components: int

    @nn.compact
    def __call__(self, e: Array) -> tuple[Array, Array, Array]:
        """Returns log weights, means and stds: [B, D, M] each."""
        h, degrees = e, np.arange(1, self.dim + 1)
        for i, width in enumerate(self.hidden_dims):
            num_degrees = max(self.dim - 1, 1)
            next_degrees = np.arange(width) % num_degrees + 1
            if width < num_degrees:  # spread: a unit of each degree would be too many
                next_degrees = np.arange(width) * num_degrees // width + 1
            mask = degrees[:, None] <= next_degrees[None]
            h = nn.silu(self._masked(f"hidden_{i}", h, mask))
            degrees = next_degrees
        outputs = np.repeat(np.arange(1, self.dim + 1), 3 * self.num_components)
        mask = degrees[:, None] < outputs[None]
        out = self._masked("out", h, mask, nn.initializers.zeros, self._spread)
        out = out.reshape(-1, self.dim, 3, self.num_components)
        logits, means, raw = (out[:, :, i] for i in range(3))
        return jax.nn.log_softmax(logits), means, MIN_STD + jax.nn.softplus(raw)

    def _masked(
        self,
        name: str,
        h: Array,
        mask: np.ndarray,
        kernel_init: Any = nn.initializers.lecun_normal(),  # noqa: B008
        bias_init: Any = nn.initializers.zeros,
    ) -> Array:
        kernel = self.param(f"{name}_kernel", kernel_init, mask.shape)
        bias = self.param(f"{name}_bias", bias_init, mask.shape[1:])
        return h @ (kernel * mask.astype(np.float32)) + bias[None]

    def _spread(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Biases of conditionals near N(0, 1) whose components differ."""
        del key
        means = np.linspace(-1.0, 1.0, self.num_components + 2)[1:-1]
        std = np.sqrt(1.0 - np.mean(means**2))
        raw = np.full(self.num_components, np.log(np.expm1(std)))
        one = np.stack([np.zeros(self.num_components), means, raw])
        return jnp.asarray(np.broadcast_to(one, (self.dim, *one.shape)).reshape(shape))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Autoregressive:
    """p(z) = prod_d p(z_d | z_<d).

    Attributes:
      moments: of the encodings.
      params: of `net`.
      net: the conditionals, of whitened encodings.
    """

    density: ClassVar[Density] = "exact"

    moments: Gaussian
    params: PyTree
    net: MaskedMLP = dataclasses.field(metadata={"static": True})

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, in D passes."""
        dim, components = self.net.dim, self.net.num_components
        gumbel, normal = jax.vmap(
            lambda key: (
                jax.random.gumbel(rng.stream(key, "component"), (dim, components)),
                jax.random.normal(rng.stream(key, "noise"), (dim,)),
            )
        )(keys)

        def draw(e: Array, d: Array) -> tuple[Array, None]:
            log_weights, means, stds = (
                part[:, d] for part in self.net.apply(self.params, e)
            )
            chosen = jax.nn.one_hot(
                jnp.argmax(log_weights + gumbel[:, d], axis=1), components
            )
            mean, std = (jnp.sum(chosen * part, axis=1) for part in (means, stds))
            return e.at[:, d].set(mean + std * normal[:, d]), None

        e, _ = jax.lax.scan(draw, jnp.zeros_like(normal), jnp.arange(dim))
        return self.moments.colour(e)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats, in one pass."""
        del key
        e = self.moments.whiten(z)
        log_weights, means, stds = self.net.apply(self.params, e)
        white = (e[..., None] - means) / stds
        logs = -0.5 * (white**2 + jnp.log(2 * jnp.pi)) - jnp.log(stds) + log_weights
        each = jax.nn.logsumexp(logs, axis=-1)  # [B, D]
        return jnp.sum(each, axis=1) - self.moments.log_volume()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Maximum likelihood; it starts near the diagonal normal of the encodings.

    Attributes:
      hidden_dims: widths.
      num_components: of each conditional.
      training: how long.
    """

    hidden_dims: tuple[int, ...] = (512, 512)
    num_components: int = 8
    training: Training = TRAINING

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Autoregressive:
        """Returns the product of conditionals.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: of checkpoints; None keeps none.
        """
        moments = gaussian.matched(encodings)
        dim = len(moments.mean)
        net = MaskedMLP(dim, self.hidden_dims, self.num_components)
        params = jax.jit(net.init)(rng.stream(key, "init"), jnp.zeros((1, dim)))
        params = fitting.minimise(
            "autoregressive",
            lambda params, z, key: (
                -jnp.mean(Autoregressive(moments, params, net).log_prob(z))
            ),
            params,
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
        )
        return Autoregressive(moments, params, net)
