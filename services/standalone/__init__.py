"""The whole system in one process: registry, router and worker over loopback gRPC, Redis and the ingest as children.

Only the wiring differs from a cluster; every service is the very same code.
"""
