"""Noise contrastive priors for variational autoencoders.

A VAE's own prior p(z) leaves holes that its decoder was never trained on.  `fit` trains
one discriminator per latent group of a frozen VAE, `sample` draws from the reweighted
prior r(z) p(z) / Z, `evaluate` says what that gains, and `report` makes a page of it.
`compare` sets it beside other priors; `load` takes it from a run of `main.py`.
`EncoderDecoder` makes a VAE of two functions of yours; `check` says whether one keeps
the protocol `LatentVariableModel`.
"""

import lazy_loader

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here
# What is offered stands in __init__.pyi; a name loads its room when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
