"""A classifier of pictures, and the lower bound on a JSD that it gives.

With the held-out NCE loss L of any classifier, JSD >= log 2 - L / 2, in nats.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncp_jax import rng
from ncp_jax.evaluation import importance
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.models.convolution import convolve
from ncp_jax.training import loop, optimizers
from ncp_jax.training.ncp import nce

Array = jax.Array
PyTree = Any

SHARES = (0.7, 0.8)  # where the training part ends, and the one that chooses
LEAST_PICTURES = 20  # of a source, so that every part has some
NUM_EVALS = 20  # validations of a training
PATIENCE = 5  # of them without a lower loss, then it ends
MAX_EPOCHS = 30
BATCH_SIZE = 128  # pairs of an update
NUM_AT_A_TIME = 500  # pictures, where nothing is learnt
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
NUM_FOR_SCALE = 1_000  # pictures that say how bright a pixel is


class PictureClassifier(nn.Module):
    """The log-ratio of two kinds of pictures, or of points; it starts at 0.

    Convolutions of stride 2 bring pictures to `side` pixels or fewer; dense layers
    read what is left, and points as they are.

    Attributes:
      channels: of the first convolution; the next ones have twice and more, up to 64.
      hidden_dims: widths of the dense layers.
      side: pixels, from which on dense layers read the map.
    """

    channels: int = 16
    hidden_dims: tuple[int, ...] = (128, 64)
    side: int = 8

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, *data_shape], standardised, to a logit [B]: nats."""
        channels = self.channels
        init = nn.initializers.he_normal()
        while x.ndim == 4 and max(x.shape[1:3]) > self.side:
            shape = (3, 3, x.shape[-1], channels)
            name = f"kernel_{x.shape[1]}x{x.shape[2]}"
            x = nn.swish(convolve(x, self.param(name, init, shape), stride=2))
            channels = min(2 * channels, 64)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden_dims:
            x = nn.swish(nn.Dense(width)(x))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(x)[:, 0]


class Parts(NamedTuple):
    """What a classifier learns from, what chooses its weights, what it is judged by."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


class Scale(NamedTuple):
    """How inputs are standardised."""

    mean: np.ndarray  # [*data_shape]
    std: np.ndarray  # []


def parts_of(pictures: np.ndarray) -> Parts:
    """Cuts [N, ...] in three; what is made of one x must be one row, or one number."""
    return Parts(*np.split(pictures, [int(share * len(pictures)) for share in SHARES]))


def jsd_bound(
    key: Array,
    of_q: np.ndarray,
    of_p: np.ndarray,
    *,
    num_steps: int,
    start: PyTree = None,
) -> tuple[Estimate, PyTree]:
    """A lower bound on the JSD of two kinds of pictures, by a classifier trained here.

    Its weights are those of the lowest loss on a part that it does not learn from,
    r = 1 among them, and the bound is from a third part: on average it is no higher
    than the divergence.  How much lower depends on the classifier.

    Args:
      key: PRNG key; consumed here.
      of_q: [N, *data_shape] decoded posterior draws, of independent x.
      of_p: [n, *data_shape] the others, uint8 both, or both float; n at most N.  Where
        n is N, row i of both may come from the same x.
      num_steps: updates, at most; fewer where that were more than 30 epochs.
      start: weights to start from, of an earlier call; None for r = 1.

    Returns:
      log 2 - L / 2 in nats, its standard error and number of pairs; and the weights.
    """
    network = PictureClassifier()
    q, p = parts_of(of_q), parts_of(of_p)
    scale = _scale(q.train)
    epoch = -(-len(p.train) // BATCH_SIZE)
    num_steps = max(min(num_steps, MAX_EPOCHS * epoch), NUM_EVALS)
    params = _init(network, rng.stream(key, "init"), of_q[:1], scale)
    best, lowest, waited = params, 2 * math.log(2), 0
    params = params if start is None else start
    opt_state = _optimizer(num_steps).init(params)
    for i in range(NUM_EVALS + 1):
        loss = float(np.mean(losses(network, params, scale, q.valid, p.valid)))
        waited = 0 if loss < lowest else waited + 1
        if loss < lowest:
            best, lowest = params, loss
        if waited > PATIENCE or i == NUM_EVALS:
            break
        params, opt_state = _train(
            network,
            num_steps,
            (params, opt_state),
            scale,
            (q.train, p.train),
            rng.at_step(rng.stream(key, "batches"), i),
        )
    of_pairs = losses(network, best, scale, q.test, p.test)
    return importance.mean_estimate(np.log(2.0) - of_pairs / 2, "nats"), best


def losses(
    network: nn.Module, params: PyTree, scale: Scale, of_q: np.ndarray, of_p: np.ndarray
) -> np.ndarray:
    """NCE losses [n] of as many pairs as both have, in float64 nats."""
    n = min(len(of_q), len(of_p))
    logit_q, logit_p = (
        np.concatenate(
            [
                _logits(network, params, scale, part[i : i + NUM_AT_A_TIME])
                for i in range(0, n, NUM_AT_A_TIME)
            ],
            dtype=np.float64,  # so that r = 1 gives 2 log 2 to the last digit
        )
        for part in (of_q[:n], of_p[:n])
    )
    return np.logaddexp(0.0, -logit_q) + np.logaddexp(0.0, logit_p)


def _scale(pictures: np.ndarray) -> Scale:
    """So that pixels vary by about one around zero; of the part that is learnt from."""
    some = pictures[:NUM_FOR_SCALE].astype(np.float32)
    mean = some.mean(0)
    return Scale(mean, np.maximum((some - mean[None]).std(), np.float32(1e-6)))


@partial(jax.jit, static_argnums=(0,))
def _init(network: nn.Module, key: Array, pictures: Array, scale: Scale) -> PyTree:
    return network.init(key, _standardised(pictures, scale))["params"]


@partial(jax.jit, static_argnums=(0,))
def _logits(network: nn.Module, params: PyTree, scale: Scale, pictures: Array) -> Array:
    return network.apply({"params": params}, _standardised(pictures, scale))


def _standardised(pictures: Array, scale: Scale) -> Array:
    return (pictures.astype(jnp.float32) - scale.mean[None]) / scale.std


def _optimizer(num_steps: int) -> optax.GradientTransformation:
    rate = optimizers.schedule("cosine", LEARNING_RATE, num_steps)
    return optimizers.optimizer("adam", rate, WEIGHT_DECAY)


@partial(jax.jit, static_argnums=(0, 1))
def _train(
    network: nn.Module,
    num_steps: int,
    state: tuple[PyTree, optax.OptState],
    scale: Scale,
    pictures: tuple[Array, Array],
    key: Array,
) -> tuple[PyTree, optax.OptState]:
    """A twentieth of the updates; pairs are drawn with replacement."""
    optimizer = _optimizer(num_steps)

    def loss_of(params: PyTree, batch: list[Array]) -> Array:
        logit_q, logit_p = (_logits(network, params, scale, x) for x in batch)
        return nce.nce_loss(logit_q, logit_p)

    def step(
        state: tuple[PyTree, optax.OptState], i: Array
    ) -> tuple[tuple[PyTree, optax.OptState], None]:
        params, opt_state = state
        # Equal numbers of both give equal rows: hybrids meet the draws they share.
        place = jax.random.uniform(rng.at_step(key, i), (BATCH_SIZE,))
        batch = [x[(place * len(x)).astype(jnp.int32)] for x in pictures]
        gradients = jax.grad(loss_of)(params, batch)
        return loop.descend(optimizer, gradients, opt_state, params), None

    state, _ = jax.lax.scan(step, state, jnp.arange(num_steps // NUM_EVALS))
    return state
