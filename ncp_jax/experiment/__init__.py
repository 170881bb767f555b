"""One run in one folder: the program, the stages, and the same for a VAE that is given.

Knows every other room. Nothing below knows it, and no config object leaves it.
"""
