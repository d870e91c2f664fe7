"""The router's picture of the catalogue: who is registered, and the fitted model that chooses among them.

Fitting takes longer than an entry takes to change, so a picture may hold entries that are newer than the fit. What
is gone from the entries is never chosen; what is new can be named at once and is chosen after the next fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hilora.sequence_routing import SequenceRouter


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogAdapter:
    """One registered adapter version, without its statistics."""

    adapter_id: str
    adapter_name: str
    revision: str
    lora_rank: int
    created_at: float
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class CatalogView:
    """The catalogue at one moment; replaced as a whole, never changed."""

    adapters: Mapping[str, CatalogAdapter]
    """By name."""
    catalog_generation: int
    """Generation of `adapters`."""
    router: SequenceRouter
    """Fitted to the adapters of `router_generation`."""
    router_generation: int
    """At most `catalog_generation`."""
    gone: frozenset[str]
    """Names the fit still knows but nobody may use any more."""
    ignored: Mapping[str, str]
    """Registered adapters that cannot be used here, by name, with the reason."""
