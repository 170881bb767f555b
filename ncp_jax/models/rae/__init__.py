"""The convolutional autoencoders of RAE (Ghosh et al., 2020), with their objectives.

Written from the description of "From Variational to Deterministic Autoencoders".  Knows
the protocol and the densities of `models`; not how it is trained.
"""
