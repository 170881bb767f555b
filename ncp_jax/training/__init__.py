"""The loop that both stages share, and the update that each of them repeats.

Knows models, latents and devices; no config, and not what a run measures or shows.
"""
