"""What sampling and training cost, ours beside plain versions and PyTorch.

Knows models, priors and the training updates; no config, no workdir, no data.
"""
