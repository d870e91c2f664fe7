"""The `hilora` object of a request: OpenAI's schema plus this."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from hilora.access import TrustTier
from hilora.errors import InvalidInput
from hilora.routing_plan import GateScope, RocScore, RoutingMode
from services.router.entrypoints.openai.request_fields import UINT64, StrictRequest, Text
from services.router.routing_options import (
    MAX_COMPOSED_ADAPTERS,
    MAX_SCALE,
    ComposedAdapter,
    LowConfidencePolicy,
    RoutedPart,
    RoutingOptions,
)

SESSION_HEADER = "X-Session-Id"
"""Requests of one session share a plan as long as their topic stays."""

_MAX_RANK = 2**20
_V = TypeVar("_V")

NumCandidates = Annotated[int, Field(ge=1, le=1024)]
"""How many adapters a plan may have."""


class ComposedBody(StrictRequest):
    """An adapter that the client chose itself."""

    model: Text = Field(min_length=1, max_length=512)
    scale: float = Field(default=1.0, ge=-MAX_SCALE, le=MAX_SCALE)
    num_rocs: int | None = Field(default=None, ge=0, le=_MAX_RANK)

    def composed(self) -> ComposedAdapter:
        """The same in the router's own terms."""
        return ComposedAdapter(model=self.model, scale=self.scale, num_rocs=self.num_rocs)


class HiloraOptions(StrictRequest):
    """The `hilora` object of a request: how adapters are chosen, and what is told of it."""

    strategy: Text | None = Field(default=None, max_length=64)
    mode: Literal["paper", "calibrated"] | None = None
    k: NumCandidates | None = None
    """The literature's word for `max_candidates`."""
    max_candidates: NumCandidates | None = None
    min_candidates: NumCandidates | None = None
    gamma: float | None = Field(default=None, gt=0, le=1)
    roc_score: RocScore | None = Field(default=None, strict=False)
    gate_scope: GateScope | None = Field(default=None, strict=False)
    adapters: list[ComposedBody] = Field(default_factory=list[ComposedBody], max_length=MAX_COMPOSED_ADAPTERS)
    own_adapter: Text | None = Field(default=None, min_length=1, max_length=512)
    exclude_adapters: list[Text] = Field(default_factory=list[Text], max_length=10_000)
    tags: list[Annotated[Text, Field(max_length=128)]] = Field(default_factory=list[str], max_length=32)
    tenant: Text | None = Field(default=None, max_length=128)
    min_trust_tier: TrustTier | None = Field(default=None, strict=False)
    plan_id: Text | None = Field(default=None, min_length=1, max_length=128)
    session_id: Text | None = Field(default=None, min_length=1, max_length=256)
    low_confidence: LowConfidencePolicy | None = Field(default=None, strict=False)
    routed_part: RoutedPart | None = Field(default=None, strict=False)
    seed: int = Field(default=0, ge=0, lt=UINT64)
    explain: bool | Literal["tokens"] = False

    @property
    def explains_candidates(self) -> bool:
        """Whether the answer tells what was scored."""
        return self.explains_gating or self.explain is True

    @property
    def explains_gating(self) -> bool:
        """Whether the answer tells which components acted."""
        return self.explain == "tokens"

    def routing_options(
        self, model: str, *, tenant: str | None = None, session_id: str | None = None
    ) -> RoutingOptions:
        """The options in the router's own terms.

        Args:
            model: the request's `model`.
            tenant: on whose behalf it comes.
            session_id: what a header says, if there is one.

        Raises:
            InvalidInput: `contradicting_options`.
        """
        return RoutingOptions(
            model=model,
            strategy=self.strategy,
            mode=RoutingMode(self.mode) if self.mode else None,
            gamma=self.gamma,
            exclude_adapters=frozenset(self.exclude_adapters),
            max_candidates=the_one("k", self.k, "max_candidates", self.max_candidates),
            min_candidates=self.min_candidates,
            roc_score=self.roc_score,
            gate_scope=self.gate_scope,
            adapters=tuple(item.composed() for item in self.adapters),
            own_adapter=self.own_adapter,
            plan_id=self.plan_id,
            session_id=the_one("X-Session-Id", session_id or None, "hilora.session_id", self.session_id),
            low_confidence=self.low_confidence,
            routed_part=self.routed_part,
            tags=frozenset(self.tags),
            seed=self.seed,
            tenant=tenant,
            min_trust_tier=self.min_trust_tier,
        )


def the_one(name: str, value: _V | None, other_name: str, other: _V | None) -> _V | None:
    """What two spellings of one wish say; None where neither is given.

    Raises:
        InvalidInput: `contradicting_options`, if they differ.
    """
    if value is not None and other is not None and value != other:
        raise InvalidInput(
            f"{name} and {other_name} mean the same and differ.",
            code="contradicting_options",
            remedy="Send one of them.",
            place=other_name,
        )
    return other if value is None else value
