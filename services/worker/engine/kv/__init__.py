"""Keys and values: slots, pages, the prefix cache, and the caches of encoder-decoder models."""
