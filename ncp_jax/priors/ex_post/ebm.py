"""The prior r(z) p(z) / Z with r learned by maximum likelihood (App. A).

Pang et al. (2020) train such a prior with the VAE.  Its gradient needs draws of the
prior itself, for which short runs that start at p stand in.  Theirs are of Langevin
dynamics without a correction: what r makes up for there is no part of r p / Z, and in
many dimensions a fast fit runs away from it.  Steps that may be refused (MALA) lead to
r p / Z itself, so they are the default.  log Z and the choice of weights go by draws of
p, and what Langevin dynamics make of r is asked for by name.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post.contract import (
    Encodings,
    Fit,
    LatentPrior,
    Training,
    check_choice,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import minimise
from ncp_jax.priors.ex_post.ncp import Reweighted, Sampling, minus_gain
from ncp_jax.training.loop import PyTree

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """How r is learned.

    Attributes:
      base: the prior that is reweighted, fitted first; None for the VAE's own.
      hidden_dims: widths of the ratio's hidden layers.
      activation: name of a function in `jax.nn`.
      negatives: "mala"; or "langevin", the same without a correction.
      num_langevin_steps: of an update's negatives.
      step_size: lambda, the square of Pang et al.'s s; MALA's first, which the first
        half of its steps adapts.
      num_score_draws: base draws for log Z of the held-out gain.
      training: how long and how fast.
      sampling: how draws are made.

    Raises:
      InputError: there are no such negatives.
    """

    base: Fit | None = None
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    negatives: Literal["mala", "langevin"] = "mala"
    num_langevin_steps: int = 20
    step_size: float = 0.16
    num_score_draws: int = 20_000
    training: Training = dataclasses.field(
        default=Training(num_steps=2_000, batch_size=512, learning_rate=4e-3)
    )
    sampling: Sampling = dataclasses.field(default=Sampling())

    def __post_init__(self) -> None:
        """Refuses negatives that there are not."""
        check_choice("negatives", self.negatives, ("mala", "langevin"))

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Reweighted:
        """Returns the prior whose r has the highest held-out gain."""
        encodings = with_base(self.base, key, encodings, folder)
        network = RatioMLP(self.hidden_dims, self.activation)
        short = Sampling("langevin", 0, self.num_langevin_steps, self.step_size)

        def loss(params: PyTree, z: Array, key: Array, base: LatentPrior) -> Array:
            still = jax.lax.stop_gradient(params)
            prior = Reweighted(base, (still,), network, short)
            keys = jax.random.split(key, len(z))
            start = base.sample(rng.stream(keys, "start"))
            move = prior.langevin if self.negatives == "langevin" else prior.mala
            negatives = jax.lax.stop_gradient(move(rng.stream(keys, "moves"), start))
            log_r = network.log_r(params, jnp.concatenate([z, negatives]))
            return jnp.mean(log_r[len(z) :]) - jnp.mean(log_r[: len(z)])

        params = minimise(
            "ebm",
            loss,
            network.start(rng.stream(key, "start"), encodings.train.shape[-1]),
            encodings,
            self.training,
            key,
            folder,
            score=minus_gain(network, self.num_score_draws),
            fixed=(encodings.base,),
            settings=dataclasses.replace(self, base=None, sampling=Sampling()),
        )
        return Reweighted(encodings.base, (params,), network, self.sampling)


# Sizes, steps and rates of Pang et al., whose draws are those of the short runs.  They
# have a leaky_relu of slope 0.2 where that of jax.nn is 0.01, an Adam of beta1 0.5, and
# a rate that falls by 0.2 % each epoch in the place of a cosine.
LEBM = Settings(
    hidden_dims=(200, 200),
    activation="leaky_relu",
    negatives="langevin",
    num_langevin_steps=60,
    training=Training(num_steps=20_000, batch_size=100, learning_rate=2e-5),
    sampling=Sampling("langevin", num_steps=60, step_size=0.16),
)
