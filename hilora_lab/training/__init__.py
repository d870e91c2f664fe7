"""Trains what strategies learn: token gates, factors of adapters."""
