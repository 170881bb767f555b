"""Noise contrastive priors for variational autoencoders, in JAX and Flax."""

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here
