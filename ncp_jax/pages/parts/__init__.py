"""What pages are made of: HTML, plots, pictures, and the names of what is measured.

Knows NumPy, matplotlib and files; no page, and no JAX.
"""
