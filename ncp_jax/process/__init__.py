"""The program as a process of its machine: others like it, its output, its cache.

Knows sockets, streams and folders; must not know what the program computes.
"""
