"""Several ratios of noise contrastive estimation: log r is their mean.

Each member tells q from p by itself, from another start and on other draws.  What they
have over-fitted differs and averages out, as in deep ensembles (Lakshminarayanan et
al., 2017).
"""

import dataclasses
from pathlib import Path

import jax

from ncp_jax import rng
from ncp_jax.priors.ex_post import ncp
from ncp_jax.priors.ex_post.contract import Encodings, Fit, with_base
from ncp_jax.priors.ex_post.ncp import Reweighted, Sampling

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averaged(Reweighted):
    """p(z) (r_1(z) .. r_K(z))^(1/K) / Z."""

    def log_r(self, z: Array) -> Array:
        """The mean of log r_k of z [B, D]: [B], nats."""
        return super().log_r(z) / len(self.params)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the members learn.

    Attributes:
      base: the prior that is reweighted, fitted first; None for the VAE's own.
      num_members: K.
      member: the loss, the network and the training of every member; its base and
        sampling do not count.
      sampling: how draws are made.
    """

    base: Fit | None = None
    num_members: int = 3
    member: ncp.Settings = dataclasses.field(default=ncp.Settings())
    sampling: Sampling = dataclasses.field(default=Sampling())

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Averaged:
        """Returns the prior with the geometric mean of all r_k."""
        encodings = with_base(self.base, key, encodings, folder)
        params = tuple(
            ncp.contrast(
                self.member,
                rng.at_step(rng.stream(key, "members"), k),
                encodings,
                encodings.base,
                folder / f"member-{k + 1}" if folder else None,
            )
            for k in range(self.num_members)
        )
        return Averaged(encodings.base, params, self.member.network, self.sampling)
