"""What a router's `/metrics` say of its catalogue."""

from __future__ import annotations


def has_fitted(metrics: str, *, num_adapters: int) -> bool:
    """Whether a router knows so many adapters and its choice is fitted to all of them.

    Before, newcomers are judged by the statistics of those that were there first, or not at all.
    """
    figures = dict(line.split(" ", 1) for line in metrics.splitlines() if line.startswith("hilora_router_"))
    return (
        float(figures.get("hilora_router_adapters", 0)) == num_adapters
        and float(figures.get("hilora_router_adapters_since_fit", -1)) == 0
        and float(figures.get("hilora_router_fit_generation", -1))
        == float(figures.get("hilora_router_catalog_generation", 0))
    )
