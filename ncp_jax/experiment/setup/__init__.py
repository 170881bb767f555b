"""What a run is made of: its settings, its folder, and what they name.

Knows every room below the experiment; not the stages, which are built on it.
"""
