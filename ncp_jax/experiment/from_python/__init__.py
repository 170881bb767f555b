"""For Python users: a report on a prior of theirs, and what a run has trained.

Knows the stages of a run.  Knows no flags and no exit codes.
"""
