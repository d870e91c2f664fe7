"""Plumbing of every service: settings, logs, metrics, errors on the wire, servers, lifecycle, the encoder.

Nothing here knows what a rank-one component is; of the algorithm it sees the error tree alone.
"""
