"""Stage 1 as one file: written from a run, and taken for that of another one.

Knows a run's settings, data and folder, and `records.weights_file`.  Knows no stage.
"""
