"""A mixture of normals with full covariances, fitted by EM (Ghosh et al., 2020)."""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Density, Encodings

Array = jax.Array

DRAWS_AT_A_TIME = 2_048  # each takes a copy of one component's factor, D^2 floats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """K normals.

    Attributes:
      log_weights: [K], normalised.
      means: [K, D].
      factors: [K, D, D], lower Cholesky factors of the covariances.
    """

    density: ClassVar[Density] = "exact"

    log_weights: Array
    means: Array
    factors: Array

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""

        def draw(key: Array) -> Array:
            k = jax.random.categorical(rng.stream(key, "component"), self.log_weights)
            noise = jax.random.normal(rng.stream(key, "noise"), self.means.shape[1:])
            return self.means[k] + self.factors[k] @ noise

        return jax.lax.map(draw, keys, batch_size=DRAWS_AT_A_TIME)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key

        def component(one: tuple[Array, Array, Array]) -> Array:
            log_weight, mean, factor = one
            white = jax.scipy.linalg.solve_triangular(
                factor, (z - mean[None]).T, lower=True
            )  # [D, B]
            log_volume = jnp.sum(jnp.log(jnp.diagonal(factor)))
            normal = -0.5 * jnp.sum(white**2 + jnp.log(2 * jnp.pi), axis=0)
            return log_weight + normal - log_volume

        # One after another: [K, B] is kept, not [K, B, D].
        joint = jax.lax.map(component, (self.log_weights, self.means, self.factors))
        return jax.nn.logsumexp(joint, axis=0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """EM of scikit-learn in float64, on draws of q(z | x).

    Means of q(z | x) alone would have too little variance, and draws fall off the
    mixture.  On nearly dead dimensions float32 makes covariances indefinite.

    Attributes:
      num_components: those that are tried; held-out density chooses one.
      max_encodings: training draws that EM sees, a random subset.
      reg_covar: what is added to variances.
      max_iterations: of EM, for each.
    """

    num_components: tuple[int, ...] = (10, 30, 100)
    max_encodings: int = 50_000
    reg_covar: float = 1e-5
    max_iterations: int = 100

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> GaussianMixture:
        """Returns the mixture under which held-out encodings are most likely.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: keeps the mixture of each number of components; None keeps none.

        Raises:
          InputError: EM failed, or `folder` holds another fit.
        """
        dim = encodings.train.shape[-1]
        rows = np.asarray(encodings.train, np.float64).reshape(-1, dim)
        generator = np.random.default_rng(rng.numpy_seed(rng.stream(key, "rows")))
        if len(rows) > self.max_encodings:
            rows = rows[generator.choice(len(rows), self.max_encodings, replace=False)]
        valid = encodings.valid.reshape(-1, dim)
        score = jax.jit(lambda mixture: jnp.mean(mixture.log_prob(valid)))
        best, best_score = None, -np.inf
        for k in self.num_components:
            seed = rng.numpy_seed(rng.at_step(rng.stream(key, "EM"), k))
            mixture = fitting.kept(
                functools.partial(self._fit, rows, k, seed),
                like=_empty(k, dim),
                metadata=self._metadata(key, encodings, k),
                folder=None if folder is None else folder / str(k),
            )
            if (held_out := float(score(mixture))) > best_score:
                best, best_score = mixture, held_out
        if best is None:
            raise InputError(
                f"gmm: no mixture of {self.num_components} components gives held-out "
                "encodings a density: raise reg_covar"
            )
        return best

    def _fit(self, rows: np.ndarray, num_components: int, seed: int) -> GaussianMixture:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Em

        em = Em(
            num_components,
            reg_covar=self.reg_covar,
            max_iter=self.max_iterations,
            random_state=seed,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                em.fit(rows)
        except ValueError as error:
            raise InputError(
                f"gmm: EM of {num_components} components on {len(rows)} encodings of "
                f"{rows.shape[1]} dimensions failed ({error}). Raise reg_covar, now "
                f"{self.reg_covar}, or use fewer components."
            ) from error
        return GaussianMixture(
            jnp.asarray(np.log(em.weights_), jnp.float32),
            jnp.asarray(em.means_, jnp.float32),
            jnp.asarray(np.linalg.cholesky(em.covariances_), jnp.float32),
        )

    def _metadata(self, key: Array, encodings: Encodings, k: int) -> dict[str, Any]:
        return {
            "prior": f"gmm of {k}",
            "settings": [self.max_encodings, self.reg_covar, self.max_iterations],
            **fitting.provenance(key, encodings),
        }


def _empty(k: int, dim: int) -> GaussianMixture:
    """Zeros of the shapes of a mixture of k."""
    return GaussianMixture(jnp.zeros(k), jnp.zeros((k, dim)), jnp.zeros((k, dim, dim)))
