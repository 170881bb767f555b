"""Energies of pictures in a run: how they are trained, and the priors that have them.

Knows a run's settings, data and folder, and `priors.pixel_energy`.  Knows no stage.
"""
