"""Data sets by name, from files as they are found, and batches by (seed, step).

Knows files and arrays; no model.
"""
