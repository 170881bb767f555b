"""Noise contrastive priors for variational autoencoders.

A VAE's own prior p(z) leaves holes that its decoder was never trained on.  `fit` trains
one discriminator per latent group of a frozen VAE, `sample` draws from the reweighted
prior r(z) p(z) / Z, `evaluate` says what that gains, and `report` makes a page of it.
`check` says whether a VAE of your own keeps the protocol `LatentVariableModel`.
"""

import ncp_jax.report  # noqa: F401, before a function takes its name here
from ncp_jax.data.datasets import binarize
from ncp_jax.errors import InputError
from ncp_jax.evaluation.held_out import evaluate
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.experiment.plug_in import report
from ncp_jax.models.base import (
    Block,
    Encoding,
    FrozenVAE,
    GroupPrior,
    LatentVariableModel,
)
from ncp_jax.models.check import check
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.distributions import (
    Bernoulli,
    DiscretisedLogisticMixture,
    Normal,
    PixelNormal,
)
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.priors.generation import Generated, sample
from ncp_jax.priors.group_samplers import (
    MALA,
    SIR,
    Base,
    IteratedSIR,
    Langevin,
    SIRThenMALA,
)
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.training.fit import fit

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here

__all__ = [
    "MALA",
    "SIR",
    "Base",
    "Bernoulli",
    "Block",
    "DiscretisedLogisticMixture",
    "Encoding",
    "Estimate",
    "FrozenVAE",
    "Generated",
    "GroupPrior",
    "InputError",
    "IteratedSIR",
    "Langevin",
    "LatentVariableModel",
    "MLPDiscriminator",
    "NCPPrior",
    "Normal",
    "PixelNormal",
    "ResidualDiscriminator",
    "SIRThenMALA",
    "__version__",
    "binarize",
    "check",
    "evaluate",
    "fit",
    "report",
    "sample",
]
