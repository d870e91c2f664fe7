"""How adapters are to be chosen, as gRPC clients say it."""

from __future__ import annotations

from hilora.errors import InvalidInput
from hilora_rpc.v1 import registry_pb2, router_pb2, routing_pb2
from services.router.infra.catalog_entry import TIERS_FROM_WIRE
from services.router.infra.wire_decisions import MODES_FROM_WIRE, SCOPES_FROM_WIRE, SCORES_FROM_WIRE
from services.router.routing_options import (
    AUTO_MODEL,
    ComposedAdapter,
    LowConfidencePolicy,
    RoutedPart,
    RoutingOptions,
)

_MODES_CLIENTS_MAY_ASK = (routing_pb2.ROUTING_MODE_PAPER, routing_pb2.ROUTING_MODE_CALIBRATED)
_MAX_CANDIDATES = 1024
_POLICIES = {
    router_pb2.LOW_CONFIDENCE_POLICY_BASE: LowConfidencePolicy.BASE,
    router_pb2.LOW_CONFIDENCE_POLICY_TOP: LowConfidencePolicy.TOP,
    router_pb2.LOW_CONFIDENCE_POLICY_REFUSE: LowConfidencePolicy.REFUSE,
}
_PARTS = {
    router_pb2.ROUTED_PART_LAST_USER: RoutedPart.LAST_USER,
    router_pb2.ROUTED_PART_CONVERSATION: RoutedPart.CONVERSATION,
    router_pb2.ROUTED_PART_WINDOW: RoutedPart.WINDOW,
}


def options_from_wire(options: router_pb2.RoutingOptions, *, tenant: str | None) -> RoutingOptions:
    """The options in the router's own terms; what is left out is None.

    Args:
        options: as the client sent them.
        tenant: on whose behalf it may ask.

    Raises:
        InvalidInput: a value outside its range.
    """
    if options.mode not in (routing_pb2.ROUTING_MODE_UNSPECIFIED, *_MODES_CLIENTS_MAY_ASK):
        raise InvalidInput(
            "This mode cannot be asked for.", remedy="Leave it out, or name a model to pin one.", place="mode"
        )
    gamma = options.gamma if options.HasField("gamma") else None
    # `not (a < b)` also refuses NaN.
    if gamma is not None and not 0 < gamma <= 1:
        raise InvalidInput(f"gamma is {gamma}, outside (0, 1].", place="gamma")
    is_tier_given = options.min_trust_tier != registry_pb2.TRUST_TIER_UNSPECIFIED
    return RoutingOptions(
        model=options.model or AUTO_MODEL,
        strategy=options.strategy or None,
        mode=MODES_FROM_WIRE.get(options.mode),
        gamma=gamma,
        exclude_adapters=frozenset(options.exclude_adapters),
        max_candidates=_num_candidates(options.max_candidates, "max_candidates")
        if options.HasField("max_candidates")
        else None,
        min_candidates=_num_candidates(options.min_candidates, "min_candidates")
        if options.HasField("min_candidates")
        else None,
        roc_score=SCORES_FROM_WIRE.get(options.roc_score),
        gate_scope=SCOPES_FROM_WIRE.get(options.gate_scope),
        adapters=tuple(map(_composed, options.adapters)),
        own_adapter=options.own_adapter or None,
        plan_id=options.plan_id or None,
        session_id=options.session_id or None,
        low_confidence=_POLICIES.get(options.low_confidence),
        routed_part=_PARTS.get(options.routed_part),
        tags=frozenset(options.tags),
        seed=options.seed,
        tenant=tenant,
        min_trust_tier=TIERS_FROM_WIRE[options.min_trust_tier] if is_tier_given else None,
    )


def _num_candidates(value: int, place: str) -> int:
    if not 1 <= value <= _MAX_CANDIDATES:
        raise InvalidInput(
            f"{place} is {value}.",
            remedy=f"Send 1 to {_MAX_CANDIDATES}; name the base as model for no adapter.",
            place=place,
        )
    return value


def _composed(item: router_pb2.ComposedAdapter) -> ComposedAdapter:
    return ComposedAdapter(
        model=item.model,
        scale=item.scale if item.HasField("scale") else 1.0,
        num_rocs=item.num_rocs if item.HasField("num_rocs") else None,
    )
