"""NVAE (Vahdat & Kautz, 2020), written from the paper, and its import from PyTorch.

Knows the protocol and the densities of `models`; not how it is trained.
"""
