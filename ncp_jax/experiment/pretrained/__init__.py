"""Stage 1 as one file: its weights, or the state of its training, for another run.

Knows a run's settings, data and folder, and `records.weights_file`.  Knows no stage.
"""
