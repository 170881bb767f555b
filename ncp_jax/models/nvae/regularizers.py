"""What keeps NVAE's training stable: penalties on its Lipschitz constant (Sec. 3.2)."""

import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PowerState = dict[str, Array]  # by shape of matrix: left vectors [num_matrices, out]

NORM_FLOOR = 1e-12


def batch_norm_penalty(params: Any) -> Array:
    """Returns the sum over all batch norms of max |scale|.

    Args:
      params: of an `NVAE`, where `scale` is the name of nothing else.
    """
    total = jnp.zeros(())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "scale":
            total += jnp.sum(jnp.max(jnp.abs(leaf), axis=-1))
    return total


def init_power_iteration(kernels: Any, key: Array) -> PowerState:
    """Returns random left singular vectors; run 40 iterations before the first use.

    Args:
      kernels: the collection "kernels" that a pass over the model sows: the kernels in
        effect, [..., height, width, in, out].
      key: PRNG key.
    """
    matrices = _matrices(kernels)
    sizes = [math.prod(stack.shape[:2]) for stack in matrices.values()]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(sizes)))
    # One program for all shapes; element j of a draw is the same in one of any size.
    normals = jax.vmap(lambda k: jax.random.normal(k, (max(sizes),)))(keys)
    return {
        name: _unit(normals[i, : sizes[i]].reshape(stack.shape[:2]))
        for i, (name, stack) in enumerate(matrices.items())
    }


def spectral_penalty(
    kernels: Any, state: PowerState, num_iterations: int = 4
) -> tuple[Array, PowerState]:
    """Returns the sum over all convolutions of their largest singular value.

    A kernel counts as the matrix [out, in * height * width].  The power iteration
    approaches the value from below; the gradient holds its vectors fixed.

    Args:
      kernels: as for `init_power_iteration`.
      state: the last call's; kernels move little from step to step.
      num_iterations: of the power iteration.

    Returns:
      [] sum, and the state for the next call.
    """
    total, new_state = jnp.zeros(()), {}
    for name, matrices in _matrices(kernels).items():
        fixed = jax.lax.stop_gradient(matrices)

        def iterate(_: int, u: Array, w: Array = fixed) -> Array:
            return _unit(_left(w, _unit(_right(w, u))))

        u = jax.lax.fori_loop(0, num_iterations, iterate, state[name])
        v = _unit(_right(fixed, u))
        total += jnp.sum(u * _left(matrices, v))
        new_state[name] = u
    return total, new_state


def annealed_weight(
    coefficient: Array, final: float, initial: float | None = None
) -> Array:
    """Returns the penalties' weight, log-linear in the KL coefficient.

    Args:
      coefficient: [] in [0, 1], from `kl_schedule.kl_coefficient`.
      final: at coefficient 1.
      initial: at coefficient 0; None keeps `final` throughout.
    """
    log_final = jnp.log(final)
    log_initial = log_final if initial is None else jnp.log(initial)
    return jnp.exp(coefficient * log_final + (1.0 - coefficient) * log_initial)


def _matrices(kernels: Any) -> dict[str, Array]:
    """Stacks kernels of equal shape as [num_matrices, out, in * height * width]."""
    by_shape = defaultdict(list)
    for kernel in jax.tree.leaves(kernels):
        out = kernel.shape[-1]
        stack = kernel.reshape(-1, math.prod(kernel.shape[-4:-1]), out)
        by_shape[f"{out}x{stack.shape[1]}"].append(jnp.swapaxes(stack, 1, 2))
    return {name: jnp.concatenate(by_shape[name]) for name in sorted(by_shape)}


def _left(matrices: Array, v: Array) -> Array:
    return jnp.einsum("nor,nr->no", matrices, v)


def _right(matrices: Array, u: Array) -> Array:
    return jnp.einsum("nor,no->nr", matrices, u)


def _unit(vectors: Array) -> Array:
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, NORM_FLOOR)
