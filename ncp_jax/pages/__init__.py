"""Pages, tables and plots from the files of a run.

Knows files, NumPy and matplotlib; imports no JAX, so that a laptop can show any run.
"""
