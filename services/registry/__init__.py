"""The registry: takes adapters in, checks and decomposes them, and publishes a numbered catalogue.

What survives everything are folders on disk: `artifacts/` (immutable adapter versions), `adapters/` (which version a
name means) and `incoming/` (accepted, not yet ingested uploads). Redis holds what moves and is rebuilt from them.
"""
