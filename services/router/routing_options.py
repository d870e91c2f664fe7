"""How a client wants its adapters chosen, as a frozen value that knows neither JSON nor protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from hilora.access import TrustTier
from hilora.routing_plan import RoutingMode

AUTO_MODEL = "auto"
"""`model` value that lets the router choose."""

BASE_MODEL = "base"
"""`model` value for the base model without adapters; its public name means the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingOptions:
    """How adapters are to be chosen. `None` leaves a value to the router's settings."""

    model: str = AUTO_MODEL
    mode: RoutingMode | None = None
    gamma: float | None = None
    """Share of the candidates' ranks that may be active, in (0, 1]."""
    exclude_adapters: frozenset[str] = frozenset()
    """Names that must not be chosen; names that nobody registered change nothing."""
    max_candidates: int | None = None
    seed: int = 0
    """Seed of the paper mode's multinomial draw: the same request gets the same plan unless it asks for another."""
    tenant: str | None = None
    """On whose behalf; adapters that this tenant may not use do not exist for the request."""
    min_trust_tier: TrustTier | None = None
    """Adapters of a lower tier do not exist for the request; the router's setting is a floor either way."""
