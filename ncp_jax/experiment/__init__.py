"""One run in one folder: settings, wiring, workdir and the stages.

Knows every room below. Nothing below knows it, and no config object leaves it.
"""
