"""The world outside: the registry's catalogue and its component files."""
