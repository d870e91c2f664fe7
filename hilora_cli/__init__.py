"""The `hilora` command: serve, manage adapters, look at routing, measure.

Heavy libraries are imported inside the commands that need them, so that `hilora --help` answers at once.
"""
