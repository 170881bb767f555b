"""Encodings in signal coordinates, made once: what stage 2 on directions trains on.

An encoding costs a pass of a deep VAE, an update of MLPs on coordinates next to
nothing; so a pool of encodings is made before the first update.  One encoding of each
example is too few: discriminators memorise the pool.
"""

import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.data import datasets
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.loop import Prepare

Array = jax.Array


def pool(
    model: SignalVAE,
    stored: np.ndarray,
    prepare: Prepare,
    key: Array,
    *,
    num_passes: int,
    batch_size: int,
    mesh: Mesh,
    progress: bool = True,
) -> np.ndarray:
    """Encodes every example several times: u [num_passes * N, K, m], pass by pass.

    Args:
      model: the frozen VAE in signal coordinates.
      stored: [N, ...] examples.
      prepare: (key, stored) -> x; its noise is fresh in every pass.
      key: PRNG key; consumed here.
      num_passes: encodings of each example.
      batch_size: examples at a time, a multiple of the devices.
      mesh: the devices that share a batch.
      progress: whether to show how far it is.
    """
    model = parallel.replicate(mesh, model)
    passes = (datasets.padded_batches(stored, batch_size) for _ in range(num_passes))
    looks: dict[str, Any] = {
        "total": num_passes * -(-len(stored) // batch_size),
        "disable": not progress,
        "mininterval": 10,
        "unit": "batch",
    }
    rows = []
    batches = tqdm.tqdm(itertools.chain.from_iterable(passes), "encodings", **looks)
    for index, (examples, mask) in enumerate(batches):
        batch_key = rng.at_step(key, index)
        u = _coordinates(mesh, prepare, model, examples, batch_key)
        rows.append(np.asarray(u)[mask])
    return np.concatenate(rows)


@partial(jax.jit, static_argnums=(0, 1))
def _coordinates(
    mesh: Mesh, prepare: Prepare, model: SignalVAE, stored: Array, key: Array
) -> Array:
    """u of one batch of examples: [B, K, m]."""
    x = parallel.split(mesh, prepare(rng.stream(key, "prepare"), stored))
    u, *_ = model.encode(x, rng.stream(key, "draws")).latents
    return parallel.join(mesh, u).swapaxes(0, 1)
