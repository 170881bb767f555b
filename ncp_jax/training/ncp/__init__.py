"""Stage 2: what it learns from, its losses, its update, and `fit`.

Knows the loop, frozen VAEs and their priors; no config, and not what a run measures.
"""
