"""What `models.check` asks of a VAE and of a discriminator, piece by piece.

Knows the protocol of `models.base`; no prior, no training.
"""
