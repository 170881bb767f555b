"""Generic variables for tests, without the time that compiling an `init` takes."""

import jax
import numpy as np


def random_variables(module, *args, seed=0):
    """Draws variables of the shapes that `module.init(key, *args)` has.

    Running statistics and scales are near 1, other vectors near 0, and kernels keep the
    size of what they read.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "var":
            return np.exp(0.2 * noise)
        if name == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[-4:-1]))
        return (1.0 if name == "scale" else 0.0) + 0.1 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)
