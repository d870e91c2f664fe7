"""The `hilora` object of a request: OpenAI's schema plus this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hilora.access import TrustTier
from hilora.routing_plan import RoutingMode
from services.router.entrypoints.openai.request_fields import UINT64, StrictRequest, Text
from services.router.routing_options import RoutingOptions


class HiloraOptions(StrictRequest):
    """The `hilora` object of a request: how adapters are chosen."""

    mode: Literal["paper", "calibrated"] | None = None
    gamma: float | None = Field(default=None, gt=0, le=1)
    exclude_adapters: list[Text] = Field(default_factory=list[Text], max_length=10_000)
    max_candidates: int | None = Field(default=None, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=UINT64)
    min_trust_tier: TrustTier | None = Field(default=None, strict=False)
    explain: bool = False

    def routing_options(self, model: str, *, tenant: str | None = None) -> RoutingOptions:
        """The options in the router's own terms."""
        return RoutingOptions(
            model=model,
            mode=RoutingMode(self.mode) if self.mode else None,
            gamma=self.gamma,
            exclude_adapters=frozenset(self.exclude_adapters),
            max_candidates=self.max_candidates,
            seed=self.seed,
            tenant=tenant,
            min_trust_tier=self.min_trust_tier,
        )
