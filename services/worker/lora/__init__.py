"""Rank-one components on the device: where they live, which a step needs, and the linear layer that adds them."""
