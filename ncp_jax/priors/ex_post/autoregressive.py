"""One dimension after another: MADE with mixtures of normals (Germain et al., 2015).

And the mixture of several (Lakshminarayanan et al., "Deep ensembles", 2017).
"""

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
from ncp_jax.samplers.resampling import log_mean_exp

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
        *hidden, outputs = self.degrees()
        h, before = e, hidden[0]
        for i, degrees in enumerate(hidden[1:]):
            mask = before[:, None] <= degrees[None]
            h, before = nn.silu(self._masked(f"hidden_{i}", h, mask)), degrees
        mask = before[:, None] < outputs[None]
        out = self._masked("out", h, mask, nn.initializers.zeros, self._spread)
        return self._mixtures(out.reshape(-1, self.dim, 3 * self.num_components))

    def degrees(self) -> list[np.ndarray]:
        """Returns those of the units of every layer, from e to the outputs."""
        num_degrees = max(self.dim - 1, 1)
        layers = [np.arange(1, self.dim + 1)]
        for width in self.hidden_dims:
            degrees = np.arange(width) % num_degrees + 1
            if width < num_degrees:  # spread: a unit of each degree would be too many
                degrees = np.arange(width) * num_degrees // width + 1
            layers.append(degrees)
        return [*layers, np.repeat(layers[0], 3 * self.num_components)]

    def draw(self, params: PyTree, gumbel: Array, normal: Array) -> Array:
        """Draws e, each unit computed once.

        All units of a degree are of one step, after which they do not change. So the D
        steps cost as much as one pass, where D passes would do the same.

        Args:
          params: of this network.
          gumbel: [B, D, M], that choose components.
          normal: [B, D], the noise of the chosen ones.

        Returns:
          e [B, D].
        """
        slots = [_slots(degrees, self.dim) for degrees in self.degrees()]
        names = [*(f"hidden_{i}" for i in range(len(self.hidden_dims))), "out"]
        values = params["params"]
        dense = [
            (
                _by_degree(values[f"{name}_kernel"], rows, columns),
                jnp.pad(values[f"{name}_bias"], (0, 1))[columns],
            )
            for name, rows, columns in zip(names, slots, slots[1:], strict=False)
        ]

        def step(layers: list[Array], given: PyTree) -> tuple[list[Array], None]:
            """Draws e_d, then computes the units of degree d, layer by layer."""
            d, dense, gumbel, normal = given
            *hidden, (kernel, bias) = dense
            logits, means, stds = self._mixtures(layers[-1] @ kernel + bias[None])
            chosen = jnp.argmax(logits + gumbel, axis=1, keepdims=True)  # [B, 1]
            mean, std = (
                jnp.take_along_axis(part, chosen, axis=1) for part in (means, stds)
            )
            new = mean + std * normal[:, None]
            filled = [_filled(layers[0], new, d)]
            for h, (kernel, bias) in zip(layers[1:], hidden, strict=True):
                new = nn.silu(filled[-1] @ kernel + bias[None])
                filled.append(_filled(h, new, d))
            return filled, None

        # What is not computed yet is zero, so that no kernel needs its mask.
        layers = [jnp.zeros((len(normal), rows.size)) for rows in slots[:-1]]
        given = (jnp.arange(self.dim), dense, gumbel.swapaxes(0, 1), normal.T)
        (e, *_), _ = jax.lax.scan(step, layers, given)
        return e

    def _mixtures(self, out: Array) -> tuple[Array, Array, Array]:
        """Log weights, means and stds [..., M] of outputs [..., 3 M]."""
        logits, means, raw = jnp.split(out, 3, axis=-1)
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


def _slots(degrees: np.ndarray, dim: int) -> np.ndarray:
    """The units of each degree [D, count], filled up with one that is not there."""
    units = [np.flatnonzero(degrees == degree) for degree in range(1, dim + 1)]
    slots = np.full((dim, max(map(len, units))), len(degrees))
    for row, there in zip(slots, units, strict=True):
        row[: len(there)] = there
    return slots


def _by_degree(kernel: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """A kernel [I, O] to the units of each degree: [D, rows.size, columns' count].

    Its rows are those of `rows`, one degree after another; units that are not there
    have zeros.
    """
    padded = jnp.pad(kernel, ((0, 1), (0, 1)))
    return padded[rows.ravel()][:, columns].swapaxes(0, 1)


def _filled(h: Array, units: Array, d: Array) -> Array:
    """A layer h [B, D * count] with units [B, count] as those of degree d + 1."""
    return jax.lax.dynamic_update_slice(h, units, (0, d * units.shape[1]))


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
        """Draws z [B, D], one per key, at the cost of one pass."""
        dim, components = self.net.dim, self.net.num_components
        gumbel, normal = jax.vmap(
            lambda key: (
                jax.random.gumbel(rng.stream(key, "component"), (dim, components)),
                jax.random.normal(rng.stream(key, "noise"), (dim,)),
            )
        )(keys)
        return self.moments.colour(self.net.draw(self.params, gumbel, normal))

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
            settings=self,
        )
        return Autoregressive(moments, params, net)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """(1/K) sum_k p_k(z).

    Attributes:
      members: the p_k.
    """

    density: ClassVar[Density] = "exact"

    members: tuple[Autoregressive, ...]

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key: K draws, of which one is taken."""
        of_members = rng.stream(keys, "draws")
        draws = jnp.stack([member.sample(of_members) for member in self.members])
        chosen = jax.vmap(jax.random.randint, (0, None, None, None))(
            rng.stream(keys, "member"), (), 0, len(self.members)
        )
        return draws[chosen, jnp.arange(len(keys))]

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        logs = jnp.stack([member.log_prob(z) for member in self.members])  # [K, B]
        return log_mean_exp(logs, axis=0)


@dataclasses.dataclass(frozen=True)
class EnsembleSettings:
    """Members that learn by themselves, from other starts and batches.

    Each gives too much mass to what it was trained on.  Where they do differs, and the
    mean of their densities does so less.

    Attributes:
      num_members: K.
      member: how each learns.
    """

    num_members: int = 4
    member: Settings = dataclasses.field(default=Settings())

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Mixture:
        """Returns the mixture.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: of checkpoints; None keeps none.
        """
        members = (
            self.member(own_key, encodings, place)
            for own_key, place in fitting.of_members(self.num_members, key, folder)
        )
        return Mixture(tuple(members))
