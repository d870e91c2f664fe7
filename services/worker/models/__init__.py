"""Unmodified transformers models: how they are loaded, and the attention function they are given."""
