"""What a run has written down, read back through types: JSON, log lines, arrays.

People edit these files and disks damage them, so nothing of one is used before all of
it has been checked. Knows formats and fields; must not know who reads them, nor JAX.
"""
