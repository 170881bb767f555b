"""The loop that both stages share, checkpoints, logs, optimisers, and stage 1's update.

Knows models and devices; no config, and not what a run measures or shows.
"""
