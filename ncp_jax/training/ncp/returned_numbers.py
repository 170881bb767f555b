"""What a VAE makes of a few real examples: the numbers that no shape tells."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.models.base import LatentVariableModel, is_deterministic
from ncp_jax.models.distributions import Bernoulli, Normal
from ncp_jax.priors.latents import log_prior

Array = jax.Array

STD = "it is the standard deviation; for a log variance v give jnp.exp(0.5 * v)"
FAULTS = {  # by what is looked at, in this order
    "x": "x, as `prepare` makes it, holds NaN or infinity: mend prepare",
    "std": "the std that the encoder returns is 0 or below, or NaN (see its weights): "
    f"{STD}; where z is a function of x the model says is_deterministic=True",
    "latents": "the encoder returns NaN or infinity: look at its weights, and at the "
    "scale of x",
    "log_q": "log_q of `encode` is NaN or infinite: is a std of q(z | x) 0 or below? "
    + STD,
    "log_likelihood": "log p(x | z) is NaN: do the decoder's weights hold NaN, or is a "
    f"std that it returns 0 or below? {STD}",
}
OF_POINTS = ("x", "latents")  # where q(z | x) has no density


def check_numbers(vae: LatentVariableModel, x: Array) -> None:
    """Encodes and decodes examples once, and looks at the numbers.

    Args:
      vae: a frozen model that passes `models.check`.
      x: [B, *data_shape] as `prepare` makes them.

    Raises:
      InputError: latents or densities are not finite, or a standard deviation of
        q(z | x) is not above 0 where the model is not deterministic.
    """
    names = OF_POINTS if is_deterministic(vae) else FAULTS
    is_sound = _soundness(vae, x)
    for name in names:
        wrong = np.flatnonzero(~np.asarray(is_sound.get(name, True)))
        if wrong.size:
            where = f"(in {wrong.size} of {len(x)} examples that were looked at)"
            raise InputError(f"{FAULTS[name]} {where}")
    if not np.any(is_sound.get("logits", True)):
        print(
            "all logits of the VAE's Bernoulli lie in [0, 1]: are they probabilities? "
            "It takes logits, whose sigmoids those are"
        )


@jax.jit
def _soundness(vae: Any, x: Array) -> dict[str, Array]:
    """By name whether the numbers of each example are as they should be: [B]."""

    def each(is_sound: Array, batch_axis: int = 0) -> Array:
        rows = jnp.moveaxis(is_sound, batch_axis, 0).reshape(len(x), -1)
        return jnp.all(rows, axis=1)

    latents, log_q = vae.encode(x, jax.random.key(0))
    likelihood = vae.decode(log_prior(vae, latents)[1])
    log_likelihood = likelihood.log_prob(x)
    finite = [each(jnp.isfinite(z), 1) for z in latents]
    found = {
        "x": each(jnp.isfinite(x)),
        "latents": jnp.all(jnp.stack(finite), axis=0),
        "log_q": each(jnp.isfinite(log_q)),
        "log_likelihood": ~jnp.isnan(log_likelihood),
    }
    if isinstance(likelihood, Bernoulli):
        logits = likelihood.logits
        found["logits"] = ~each((logits >= 0) & (logits <= 1))
    is_one = sum(block.num_groups for block in vae.blocks) == 1
    posterior = getattr(vae, "posterior", None)
    q = posterior(x) if is_one and posterior is not None else None
    if q is not None and not hasattr(q, "log_prob"):
        raise InputError(
            f"posterior(x) returns a {type(q).__name__}: it must return "
            f"ncp_jax.Normal(mean, std), or None; {STD}"
        )
    if isinstance(q, Normal):
        found["std"] = each(jnp.broadcast_to(q.std > 0, q.mean.shape))
    return found
