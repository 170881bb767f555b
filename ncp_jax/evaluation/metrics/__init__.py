"""Measures of samples, one file each: Frechet distance, KID, MMD, neighbours, modes.

Knows arrays and files of feature networks; no VAE and no prior.
"""
