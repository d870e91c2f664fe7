"""The three services, the plumbing they share, and all of them in one process (`standalone`)."""
