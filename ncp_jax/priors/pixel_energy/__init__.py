"""A learned energy of pictures on top of a frozen VAE and its prior (VAEBM).

Knows the joint noise of z and x, its Langevin dynamics, and how the energy learns.
Knows no data set and no run: pictures come as arrays, the VAE inside a prior.
"""
