"""Is there a hole at all?  A classifier of pictures bounds it from below.

Decoding maps z to E[x | z], so no classifier of pictures can tell two laws of z better
apart than one of z could (data processing): with the held-out NCE loss L of any
classifier of decoded draws,

  JSD(q(z), p(z)) >= JSD(decoded q, decoded p) >= log 2 - L / 2,  in nats.

Stage 2 should find at least that much.  Where its losses stay near 2 log 2 and this
bound does not, its classifiers are blind, and the prior does not fit.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.picture_classifier import jsd_bound
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.priors.latents import hybrid, log_prior

Array = jax.Array
PyTree = Any

MOST_GROUPS = 6  # of the curve, where nobody says which


def bounds(
    key: Array,
    of_q: np.ndarray,
    hybrids: Mapping[int, np.ndarray],
    samplers: Mapping[str, np.ndarray],
    *,
    num_steps: int,
) -> dict[str, Estimate]:
    """`jsd_bound` of every source of pictures from decoded posterior draws.

    Args:
      key: PRNG key; consumed here.
      of_q: [N, *data_shape] decoded posterior draws.
      hybrids: by how many groups are from q, [N, *data_shape]; 0, the base prior, is
        among them.
      samplers: by name, [n, *data_shape]; few may do, since their classifier starts
        from the base prior's.
      num_steps: of each training.

    Returns:
      `audit_jsd_base`; `audit_jsd_NAME` of each sampler, what its repair leaves; and
      where there are several groups `audit_jsd_hybrid/j`, whose j = 0 is the base.
    """

    def bound(name: str, of_p: np.ndarray, start: PyTree) -> tuple[Estimate, PyTree]:
        own = rng.stream(key, name)
        return jsd_bound(own, of_q, of_p, num_steps=num_steps, start=start)

    of_hybrids, start = {}, None
    for j in sorted(hybrids):
        of_hybrids[j], params = bound(f"hybrid {j}", hybrids[j], None)
        start = params if j == 0 else start
    found = {"audit_jsd_base": of_hybrids[0]}
    for name, pictures in samplers.items():
        found[f"audit_jsd_{name}"], _ = bound(f"sampler {name}", pictures, start)
    if len(of_hybrids) > 1:
        found |= {f"audit_jsd_hybrid/{j}": e for j, e in of_hybrids.items()}
    return found


@partial(jax.jit, static_argnums=(2,))
def decoded(
    vae: LatentVariableModel, x: Array, nums_given: tuple[int, ...], key: Array
) -> tuple[Array, Array]:
    """Decoded posterior draws and hybrids of the same draws.

    Args:
      vae: the model.
      x: [B, *data_shape].
      nums_given: how many groups each hybrid has from q(z | x); the others are from p.
      key: PRNG key; consumed here.

    Returns:
      E[x | z] at one z ~ q(z | x) [B, *data_shape], and hybrids [B, J, *data_shape].
    """
    latents = vae.encode(x, rng.stream(key, "posterior")).latents
    _, carry = log_prior(vae, latents)

    def one(num_given: Array) -> Array:
        own = rng.at_step(rng.stream(key, "prior"), num_given)
        return vae.decode(hybrid(vae, latents, num_given, own)[1]).mean

    of_hybrids = jax.lax.map(one, jnp.array(nums_given))
    return vae.decode(carry).mean, jnp.moveaxis(of_hybrids, 0, 1)


def groups_of_curve(num_groups: int, chosen: tuple[int, ...] = ()) -> tuple[int, ...]:
    """How many groups each hybrid has from q: those that are chosen, and 0.

    Where none are, all of 0 .. K - 1 if they are few, else some, denser at the top,
    where holes are mostly found.
    """
    if not chosen:
        shares = np.linspace(0, 1, MOST_GROUPS) ** 1.5
        chosen = tuple((shares * (num_groups - 1)).round().astype(int).tolist())
    return tuple(sorted({0, *chosen}))
