"""The doors of the worker."""
