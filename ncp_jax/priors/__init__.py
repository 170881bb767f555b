"""What may stand in the place of p(z): the NCP prior and draws from it, group by group.

Knows a frozen VAE by its protocol, and samplers; not how anything was trained.
"""
