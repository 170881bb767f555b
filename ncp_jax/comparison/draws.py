"""Draws of a prior, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.benchmark import timing
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.priors.ex_post.contract import LatentPrior
from ncp_jax.priors.generation import Generated

Array = jax.Array

NUM_REPEATS, MAX_SECONDS = 3, 60.0  # of timed batches of draws


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def draw(prior: LatentPrior, key: Array, num: int, batch_size: int) -> np.ndarray:
    """Draws z [num, D]; draw i depends on (key, i) alone.

    Raises:
      InputError: a draw is not finite.
    """
    size, parts = min(batch_size, num), []
    for first in range(0, num, size):
        keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(size))
        parts.append(np.asarray(_sample(prior, keys)))
    z = np.concatenate(parts)[:num]
    if not np.isfinite(z).all():
        raise InputError(f"draws of {type(prior).__name__} are not finite")
    return z


_sample = jax.jit(lambda prior, keys: prior.sample(keys))


def decoded(
    model: Compared, prior: LatentPrior, key: Array, num: int, batch_size: int
) -> Generated:
    """Draws z, as `draw`, and decodes it: E[x | z] and z as the VAE has it."""
    z = draw(model.whole(prior), key, num, batch_size)
    batches = datasets.padded_batches(z, min(batch_size, num))
    parts = [jax.device_get(_decode(model, batch)) for batch, _ in batches]
    images, latents = jax.tree.map(lambda *of: np.concatenate(of)[:num], *parts)
    return Generated(images, tuple(block.swapaxes(0, 1) for block in latents), ())


@jax.jit
def _decode(model: Compared, z: Array) -> tuple[Array, list[Array]]:
    """Both with the batch first, which the blocks of a VAE have second."""
    latents = [block.swapaxes(0, 1) for block in model.own_latents(z)]
    return model.decode(z).mean, latents


@jax.default_matmul_precision("float32")  # of the program that draws
def cost(prior: LatentPrior, key: Array, batch_size: int) -> dict[str, Estimate]:
    """What draws of z cost, decoding left out, `batch_size` at a time.

    Returns:
      `sampling_seconds` of 1,000, from the median of a few calls; and `num_bytes` of a
      batch: arguments, results and temporaries of the compiled program.
    """
    keys = jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(batch_size))
    jax.block_until_ready(_sample(prior, keys))  # compiled now, if not before
    taken = timing.time_calls(lambda: _sample(prior, keys), NUM_REPEATS, MAX_SECONDS)
    num_bytes = timing.num_bytes(_sample.lower(prior, keys).compile())
    seconds = 1_000 / batch_size * float(np.median(taken))
    return {
        "sampling_seconds": Estimate(seconds, None, len(taken), "s per 1,000"),
        "num_bytes": Estimate(float(num_bytes), None, 1, "bytes"),
    }
