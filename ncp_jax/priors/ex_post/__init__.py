"""Priors fitted to the encodings of a frozen VAE of one latent vector, one a file.

Knows what a prior over one vector offers and how each learns it.  Knows no VAE, no data
set and no run: encodings come as arrays.
"""
