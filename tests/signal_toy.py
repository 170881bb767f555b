"""VAEs whose signal directions are known: q moves with x in two directions of forty.

`python -m tests.signal_toy over_devices` and `... large` print, as JSON, what wants a
process of its own.
"""

import dataclasses
import json
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import parallel, rng
from ncp_jax.data.datasets import padded_batches
from ncp_jax.models.base import Block, Encoding, GroupPrior
from ncp_jax.models.distributions import Bernoulli, Normal
from ncp_jax.priors import directions, signal_covariance

D = 40


def planes(num_groups=1, num_dims=D, seed=0):
    """Orthonormal columns [num_groups, D, 2]."""
    noise = np.random.default_rng(seed).normal(size=(num_groups, num_dims, 2))
    return np.linalg.qr(noise)[0].astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignalVAE:
    """K groups; e_k ~ N(U_k diag(gains_k) (x - pull u_{k-1}), std^2 I) given x [2].

    u_{k-1} = U_{k-1}^T e_{k-1}, and u_{-1} = 0.  The prior is z_k = 3 u_{k-1} + 2 e_k
    with e_k ~ N(0, I), where the two numbers u are repeated over the D variables.
    `encode(x, None)` takes every mean, where `has_means`.
    """

    planes: jax.Array  # [K, D, 2]
    gains: jax.Array  # [K, 2]
    std: float = 0.6
    pull: float = 0.0
    has_means: bool = dataclasses.field(default=True, metadata={"static": True})
    is_normal: bool = dataclasses.field(default=True, metadata={"static": True})

    @property
    def blocks(self):
        num_groups, num_dims, _ = self.planes.shape
        return (Block(num_groups, (num_dims // 4, 4), (0,)),)

    def encode(self, x, key):
        if key is None and not self.has_means:
            raise TypeError("a key is needed")
        carry, latents, log_q = self.root(len(x)), [], []
        for k in range(len(self.planes)):
            base = self._base(carry)
            signal = (x - self.pull * carry) * self.gains[k][None]
            e = (signal @ self.planes[k].T).reshape(base.mean.shape)
            if key is not None:
                noise = jax.random.normal(rng.at_step(key, k), e.shape)
                e = e + self.std * noise
            latents.append(base.mean + base.std * e)
            log_q.append(jnp.zeros(len(x)))
            carry = self.absorb(0, k, carry, latents[-1])
        return Encoding((jnp.stack(latents),), jnp.stack(log_q, 1))

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        base = self._base(carry)
        context = jnp.zeros((len(carry), 0))
        return GroupPrior(base if self.is_normal else Bernoulli(base.mean), context)

    def absorb(self, block, k, carry, z_k):
        base = self._base(carry)
        e = ((z_k - base.mean) / base.std).reshape(len(z_k), -1)
        return e @ self.planes[k]

    def decode(self, carry):
        return Normal(carry, jnp.ones_like(carry))

    def _base(self, carry):
        size = self.planes.shape[1]
        mean = 3.0 * jnp.repeat(carry, size // 2, 1).reshape(-1, size // 4, 4)
        return Normal(mean, jnp.full_like(mean, 2.0))


def prepare(key, stored):
    return stored


def examples(num, seed=1):
    return np.random.default_rng(seed).normal(size=(num, 2)).astype(np.float32)


def over_devices():
    """The leading eigenvalues by means and by draws, on all devices there are."""
    parallel.join_processes()
    vae = SignalVAE(jnp.asarray(planes(2)), jnp.array([[0.8, 0.5], [0.7, 0.0]]))
    spectra = [
        signal_covariance.leading(
            vae,
            padded_batches(examples(300), 8 * 16),
            prepare,
            rng.root(3),
            num_leading=2,
            max_exact_dim=max_exact_dim,
            num_passes=2,
            num_draws=3,
            use_means=use_means,
            mesh=parallel.mesh_of(),
        )[0].values.tolist()
        for use_means in (True, False)
        for max_exact_dim in (D, 1)
    ]
    return {"devices": len(jax.devices()), "spectra": spectra}


def large():
    """Fits D = 32 x 32 x 20; the memory that it took, in GB, and what it found."""
    plane = planes(1, 32 * 32 * 20)
    vae = SignalVAE(jnp.asarray(plane), jnp.array([[0.8, 0.5]]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = directions.fit_directions(
        vae, padded_batches(examples(400), 100), prepare, rng.root(3)
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cosines = np.linalg.svd(plane[0].T @ fitted.basis[0][0], compute_uv=False)
    return {
        "gigabytes": (after - before) * 1024 / 1e9,
        "widths": fitted.widths,
        "cosines": cosines.tolist(),
    }


if __name__ == "__main__":
    print(json.dumps({"over_devices": over_devices, "large": large}[sys.argv[1]]()))
