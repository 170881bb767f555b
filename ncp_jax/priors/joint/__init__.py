"""VAEs of one latent vector whose prior learns with them, one prior a file.

Knows the prior's density in the place of log p(z), and what that needs of a training
step.  Knows no data set, no loop and no run: they are Linen modules as any other.
"""
