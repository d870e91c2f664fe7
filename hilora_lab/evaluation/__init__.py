"""Measures a pool of adapters: exact match through transformers and PEFT, or through a running system."""
