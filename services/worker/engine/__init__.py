"""The step loop: requests in, tokens out, on one thread that owns the model."""
