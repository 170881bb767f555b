"""What is measured of a VAE and its priors: likelihoods, bounds, diagnostics.

Knows models and priors through their protocols; no config, no workdir, no file.
"""
