"""How a client wants its adapters chosen, as a frozen value that knows neither JSON nor protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hilora.access import TrustTier
from hilora.routing_plan import GateScope, RocScore, RoutingMode

AUTO_MODEL = "auto"
"""`model` value that lets the router choose, by the router's strategy; `auto:<strategy>` by another one."""

BASE_MODEL = "base"
"""`model` value for the base model without adapters; its public name means the same."""

MAX_COMPOSED_ADAPTERS = 64
"""Adapters that a client may put together: what one request may ask of a worker."""

MAX_SCALE = 1000.0
"""Largest factor of a composed adapter, either way: beyond, half precision has no numbers."""


class LowConfidencePolicy(StrEnum):
    """What happens when no adapter explains the text."""

    BASE = "base"
    """The base answers alone."""
    TOP = "top"
    """The likeliest adapters answer all the same."""
    REFUSE = "refuse"
    """The request is refused."""


class RoutedPart(StrEnum):
    """Which part of a conversation adapters are chosen by."""

    LAST_USER = "last_user"
    """The last message of the user."""
    CONVERSATION = "conversation"
    """All messages of the user and the assistant."""
    WINDOW = "window"
    """The last messages of the user, as many as the router's setting says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComposedAdapter:
    """An adapter that the client chose itself."""

    model: str
    """`name`, `name@version` or an alias."""
    scale: float = 1.0
    """Factor of its output; finite, within `MAX_SCALE` either way."""
    num_rocs: int | None = None
    """ROCs a token may switch on; None for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingOptions:
    """How adapters are to be chosen. `None` leaves a value to the router's settings, or to the strategy."""

    model: str = AUTO_MODEL
    strategy: str | None = None
    mode: RoutingMode | None = None
    gamma: float | None = None
    """Share of the candidates' ranks that may be active, in (0, 1]."""
    exclude_adapters: frozenset[str] = frozenset()
    """Names that must not be chosen; names that nobody registered change nothing."""
    max_candidates: int | None = None
    min_candidates: int | None = None
    """How many candidates take a text that no adapter explains."""
    roc_score: RocScore | None = None
    gate_scope: GateScope | None = None
    adapters: tuple[ComposedAdapter, ...] = ()
    """Exactly these, instead of a choice; at most `MAX_COMPOSED_ADAPTERS`."""
    own_adapter: str | None = None
    """Name of the adapter that was made for the text's task: what the strategy `oracle` takes."""
    plan_id: str | None = None
    """The plan of an earlier answer, to be used again as it was."""
    session_id: str | None = None
    """Requests of one session share a plan as long as their topic stays."""
    low_confidence: LowConfidencePolicy | None = None
    routed_part: RoutedPart | None = None
    tags: frozenset[str] = frozenset()
    """Only adapters that bear all of them are chosen among."""
    seed: int = 0
    """Seed of the paper mode's multinomial draw: the same request gets the same plan unless it asks for another."""
    tenant: str | None = None
    """On whose behalf; adapters that this tenant may not use do not exist for the request."""
    min_trust_tier: TrustTier | None = None
    """Adapters of a lower tier do not exist for the request; the router's setting is a floor either way."""
