"""Pages from the files of a run: of one run, of several, of a benchmark.

Knows files and the parts of pages; imports no JAX, so that a laptop can show any run.
"""
