"""h(x, z) = p(z) r(z) p(x | z) exp(-E(x)) / Z, in the noise that makes z and x.

Xiao, Kreis, Kautz and Vahdat, "VAEBM: a symbiosis between variational autoencoders and
energy-based models" (2021).  With z_k = mean_k + std_k e_k and x = mean + std e_x the
VAE's part of h is the standard normal of all e, so one step size suits every scale.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.errors import InputError
from ncp_jax.models.base import GroupPrior, Latents, LatentVariableModel
from ncp_jax.models.distributions import (
    Distribution,
    Likelihood,
    PixelNormal,
    Standardizable,
)
from ncp_jax.priors.latents import prior_of, walk
from ncp_jax.priors.ncp_prior import Carry, Draws, Finished, NCPPrior
from ncp_jax.priors.pixel_energy.energy import EnergyNet
from ncp_jax.priors.standardized import itself, own_latents
from ncp_jax.samplers import chains

Array = jax.Array
PyTree = Any


class Dynamics(NamedTuple):
    """Langevin dynamics of the joint noise: lambda, and the number of steps."""

    step_size: float = 0.03
    num_steps: int = 24


class RefinedInfo(NamedTuple):
    """What the dynamics did to the pictures of a batch, as if of one group: [1, B]."""

    energy: Array  # E at the end, nats
    energy_change: Array  # E at the end less E at the start, nats
    pixel_change: Array  # root of the mean square over all pixels, in units of x


class Unfolded(NamedTuple):
    """What joint noise [B, D] stands for."""

    x: Array  # [B, *data_shape]
    latents: Latents  # of `prior.vae`, per block [num_groups, B, *latent_shape]
    carry: Carry  # its state once all of them are absorbed
    log_r: Array  # [B] the sum over the groups, nats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class PixelEnergyPrior(NCPPrior):
    """An NCP prior whose draws an energy of pictures moves on.

    Attributes:
      energy_params: of `network`.
      network: E.
      dynamics: of draws.
    """

    energy_params: PyTree = None
    network: EnergyNet = dataclasses.field(
        default=EnergyNet(), metadata={"static": True}
    )
    dynamics: Dynamics = dataclasses.field(
        default=Dynamics(), metadata={"static": True}
    )

    def energy(self, x: Array) -> Array:
        """E of x [B, *data_shape]: [B], nats."""
        return self.network.apply({"params": self.energy_params}, x)

    def log_density(self, noise: Array) -> Array:
        """log h of joint noise [B, D] but for log Z: [B], nats."""
        found = self.unfold(noise)
        log_normal = -0.5 * jnp.sum(noise**2, axis=1)
        return log_normal + found.log_r - self.energy(found.x)

    def moved(self, keys: Array, noise: Array) -> Array:
        """Joint noise [B, D] after the dynamics, chain b by keys[b] alone."""
        draws, _ = samplers.langevin(
            keys,
            noise,
            self.log_density,
            step_size=self.dynamics.step_size,
            num_steps=self.dynamics.num_steps,
        )
        return draws

    def finish(self, keys: Array, draws: Draws) -> Finished:
        """Pictures and z where the dynamics end that start at ancestral draws."""
        start = self.joint_noise(rng.stream(keys, "pixel noise"), draws.latents)
        end = self.moved(rng.stream(keys, "pixel energy"), start)
        before, after = self.unfold(start), self.unfold(end)
        energies = self.energy(before.x), self.energy(after.x)
        square = (after.x - before.x) ** 2
        mean_square = jnp.mean(square, axis=tuple(range(1, square.ndim)))
        info = RefinedInfo(
            energies[1][None],
            (energies[1] - energies[0])[None],
            jnp.sqrt(mean_square)[None],
        )
        latents = own_latents(self.vae, after.latents, after.carry)
        return Finished(after.x, latents, (info,))

    def joint_noise(self, keys: Array, latents: Latents) -> Array:
        """The noise [B, D] of given z and of a new x ~ p(x | z).

        Args:
          keys: [B] PRNG keys of e_x; consumed here.
          latents: of `vae`, per block [num_groups, B, *latent_shape].
        """

        def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> Array:
            del k
            mean, std = _affine(f"the base prior of block {b}", prior.base)
            is_there = std > 0  # padded coordinates are not, and keep e = 0
            return jnp.where(
                is_there, (z_k - mean) / jnp.where(is_there, std, 1.0), 0.0
            )

        of_z, carry = walk(self.vae, latents, visit)
        return jnp.concatenate([_flat(of_z), self._pixel_noise(keys, carry)], axis=1)

    def of_normal(self, keys: Array) -> Array:
        """Draws of the VAE's own joint noise, N(0, I): [B, D]."""
        shape = jax.eval_shape(
            lambda: self._pixel_noise(keys, self.unfold(self._zeros(len(keys))).carry)
        ).shape
        return chains.noise(keys, jnp.zeros((len(keys), self.num_latent + shape[1])))

    @property
    def num_latent(self) -> int:
        """The dimensions of all z_k together."""
        return sum(b.num_groups * math.prod(b.latent_shape) for b in self.vae.blocks)

    def unfold(self, noise: Array) -> Unfolded:
        """Makes z and x of joint noise [B, D]; e_x = 0 where there is none of it."""
        vae, carry = self.vae, self.vae.root(len(noise))
        log_r, latents, first = jnp.zeros(len(noise)), [], 0
        for b, block in enumerate(vae.blocks):
            size = block.num_groups * math.prod(block.latent_shape)
            of_block = noise[:, first : first + size].reshape(
                len(noise), block.num_groups, *block.latent_shape
            )
            first += size

            def step(
                state: tuple[Carry, Array], ke: tuple[Array, Array], b: int = b
            ) -> tuple[tuple[Carry, Array], Array]:
                (carry, log_r), (k, e_k) = state, ke
                base, context = prior_of(vae, b, k, carry, len(e_k))
                mean, std = _affine(f"the base prior of block {b}", base)
                z_k = mean + std * e_k
                log_r = log_r + self.log_ratio(b, k, context)(z_k)
                return (vae.absorb(b, k, carry, z_k), log_r), z_k

            groups = jnp.arange(block.num_groups)
            (carry, log_r), z = jax.lax.scan(
                step, (carry, log_r), (groups, of_block.swapaxes(0, 1))
            )
            latents.append(z)
        x = _pictures(vae.decode(carry), noise[:, first:])
        return Unfolded(x, tuple(latents), carry, log_r)

    def _zeros(self, batch_size: int) -> Array:
        return jnp.zeros((batch_size, self.num_latent))

    def _pixel_noise(self, keys: Array, carry: Carry) -> Array:
        """e_x of each chain, flat: [B, pixels], or [B, 0] where x is a mean."""
        likelihood = self.vae.decode(carry)
        if not _has_noise(likelihood):
            return jnp.zeros((len(keys), 0))
        mean = likelihood.mean
        return chains.noise(keys, mean).reshape(len(keys), -1)


def without_ratios(ncp: NCPPrior) -> NCPPrior:
    """The VAE's own prior, r = 1, in the VAE's own latents."""
    return of_vae(itself(ncp.vae), ncp.discriminator)


def of_vae(vae: LatentVariableModel, discriminator: Any) -> NCPPrior:
    """The same of a VAE; the network has no parameters and is never asked."""
    return NCPPrior(vae, discriminator, (None,) * len(vae.blocks))


def _flat(noise: Latents) -> Array:
    """Per block [num_groups, B, ...] -> [B, D]."""
    return jnp.concatenate(
        [e.swapaxes(0, 1).reshape(e.shape[1], -1) for e in noise], axis=1
    )


def _affine(what: str, base: Distribution) -> tuple[Array, Array]:
    """Mean and std of a distribution that is a map of normal noise."""
    if not isinstance(base, Standardizable):
        raise InputError(
            f"{what} is {type(base).__name__}, which is no affine map of normal noise: "
            "an energy of pictures moves that noise, so give the distribution a method "
            "standardization() -> (mean, std), or a Normal in its place"
        )
    return base.standardization()


def _has_noise(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, Standardizable | PixelNormal)


def _pictures(likelihood: Likelihood, noise: Array) -> Array:
    """x of p(x | z) and its noise [B, pixels]; E[x | z] of pixels without a density."""
    if not noise.shape[1]:
        return likelihood.mean
    if isinstance(likelihood, PixelNormal):  # of 2 x - 1, not clipped: slopes stay
        mean, std = 0.5 * likelihood.scaled_mean + 0.5, 0.5 * likelihood.scaled_std
    else:
        mean, std = _affine("p(x | z)", likelihood)
    return mean + std * noise.reshape(mean.shape)
