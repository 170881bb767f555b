"""VampPrior ex post: a mixture of posteriors (Tomczak & Welling, 2018)."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.training.checkpoints import fingerprint

Array = jax.Array

TRAINING = Training(learning_rate=1e-2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalMixture:
    """K diagonal normals.

    Attributes:
      logits: [K], log weights up to a constant.
      means: [K, D].
      log_stds: [K, D].
    """

    density: ClassVar[Density] = "exact"

    logits: Array
    means: Array
    log_stds: Array

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""

        def draw(key: Array) -> Array:
            k = jax.random.categorical(rng.stream(key, "component"), self.logits)
            normal = Normal(self.means[k], jnp.exp(self.log_stds[k]))
            return normal.sample(rng.stream(key, "noise"))

        return jax.vmap(draw)(keys)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        shift = z[:, None] - self.means[None]  # [B, K, D]
        white = shift * jnp.exp(-self.log_stds)[None]
        return self._mix(jnp.sum(white**2, axis=-1))

    def rough_log_prob(self, z: Array) -> Array:
        """`log_prob` by two products of matrices, whose gradient is fast.

        Squares cancel: the error is about 1e-7 of the largest |z|^2 / std^2, with z as
        seen from the mean of all means, so it is for fits alone, not for measures.
        """
        center = jax.lax.stop_gradient(jnp.mean(self.means, axis=0, keepdims=True))
        z, means = z - center, self.means - center
        precision = jnp.exp(-2.0 * self.log_stds)  # [K, D]
        of_mean = jnp.sum(means**2 * precision, axis=-1)
        with jax.default_matmul_precision("float32"):  # TF32 would be off by a nat
            with_z = (z**2) @ precision.T - 2.0 * z @ (means * precision).T
        return self._mix(with_z + of_mean[None])

    def _mix(self, squares: Array) -> Array:
        """From squared distances [B, K] in standard deviations to log p [B]."""
        dim = self.means.shape[1]
        log_volume = jnp.sum(self.log_stds, axis=-1) + 0.5 * dim * jnp.log(2 * jnp.pi)
        offsets = jax.nn.log_softmax(self.logits) - log_volume
        return jax.nn.logsumexp(offsets[None] - 0.5 * squares, axis=1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A mixture of q(z | x_i) of random training examples, which then learns.

    Pseudo-inputs of a frozen encoder only serve to say where components lie; here the
    components themselves are free: means, scales and weights maximise E_q[log p].

    Attributes:
      num_components: K, at most the number of training examples.
      training: None leaves the posteriors as they are; then p has density where those
        K examples lie and next to none elsewhere, unless latents are few.
    """

    num_components: int = 500
    training: Training | None = TRAINING

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> DiagonalMixture:
        """Returns the mixture.

        Args:
          key: PRNG key; consumed here.
          encodings: with `posterior`.
          folder: of checkpoints; None keeps none.

        Raises:
          InputError: the VAE does not say q(z | x), or has fewer examples than K.
        """
        start = self._start(key, encodings)
        if self.training is None:
            return start
        return fitting.minimise(
            "vamp",
            lambda mixture, z, key: -jnp.mean(mixture.rough_log_prob(z)),
            start,
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            settings=(self, fingerprint(encodings.posterior)),
        )

    def _start(self, key: Array, encodings: Encodings) -> DiagonalMixture:
        posterior = encodings.posterior
        if posterior is None:
            raise InputError(
                "vamp is a mixture of q(z | x), which this VAE does not say: give "
                "`posterior`, the mean and std [N, D] of the N training examples, with "
                "its encodings; or leave vamp out (gmm needs draws alone)"
            )
        if self.num_components > len(posterior.mean):
            raise InputError(
                f"vamp wants {self.num_components} training examples, one a component; "
                f"there are {len(posterior.mean)}: lower num_components"
            )
        if not jnp.all(posterior.std > 0):
            raise InputError("vamp is a mixture of q(z | x): its std must be above 0")
        rows = jax.random.choice(
            rng.stream(key, "rows"),
            len(posterior.mean),
            (self.num_components,),
            replace=False,
        )
        return DiagonalMixture(
            jnp.zeros(self.num_components),
            posterior.mean[rows],
            jnp.log(posterior.std[rows]),
        )
