"""Every prior on one frozen VAE under one protocol: fitted, measured, side by side.

Knows a VAE, examples and priors; knows no config and no run.
"""
