"""Networks and densities: the protocol of a VAE, MLP VAEs, discriminators.

Knows JAX and Flax alone; no prior, no sampler, no data set.
"""
