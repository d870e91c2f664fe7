from __future__ import annotations

import math

import pytest

from hilora.access import TrustTier
from hilora.errors import InvalidInput
from hilora.routing_plan import GateScope, RocScore, RoutingMode
from hilora_rpc.v1 import registry_pb2, router_pb2, routing_pb2
from services.router.entrypoints.rpc_options import options_from_wire
from services.router.routing_options import ComposedAdapter, LowConfidencePolicy, RoutedPart, RoutingOptions


class TestOptions:
    def test_what_is_left_out_is_left_to_the_router(self):
        assert options_from_wire(router_pb2.RoutingOptions(), tenant=None) == RoutingOptions()

    def test_every_field_arrives(self):
        message = router_pb2.RoutingOptions(
            model="auto",
            mode=routing_pb2.ROUTING_MODE_PAPER,
            gamma=0.5,
            exclude_adapters=["x"],
            max_candidates=4,
            seed=7,
            min_trust_tier=registry_pb2.TRUST_TIER_TRUSTED,
            strategy="hilora-paper",
            adapters=[
                router_pb2.ComposedAdapter(model="a", scale=0.0, num_rocs=0),
                router_pb2.ComposedAdapter(model="b@2"),
            ],
            min_candidates=2,
            roc_score=routing_pb2.ROC_SCORE_CONTRIBUTION,
            tags=["t"],
            plan_id="plan-1",
            session_id="s",
            low_confidence=router_pb2.LOW_CONFIDENCE_POLICY_REFUSE,
            routed_part=router_pb2.ROUTED_PART_WINDOW,
            gate_scope=routing_pb2.GATE_SCOPE_PER_ADAPTER,
            own_adapter="y",
        )
        # A new field of the message has to be read, and named here.
        assert {field.name for field, _ in message.ListFields()} | {"tenant"} == set(
            router_pb2.RoutingOptions.DESCRIPTOR.fields_by_name
        )

        assert options_from_wire(message, tenant="acme") == RoutingOptions(
            mode=RoutingMode.PAPER,
            gamma=0.5,
            exclude_adapters=frozenset({"x"}),
            max_candidates=4,
            seed=7,
            min_trust_tier=TrustTier.TRUSTED,
            strategy="hilora-paper",
            adapters=(ComposedAdapter(model="a", scale=0.0, num_rocs=0), ComposedAdapter(model="b@2")),
            min_candidates=2,
            roc_score=RocScore.CONTRIBUTION,
            tags=frozenset({"t"}),
            plan_id="plan-1",
            session_id="s",
            low_confidence=LowConfidencePolicy.REFUSE,
            routed_part=RoutedPart.WINDOW,
            gate_scope=GateScope.PER_ADAPTER,
            own_adapter="y",
            tenant="acme",
        )

    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"gamma": 0.0}, "gamma"),
            ({"gamma": math.nan}, "gamma"),
            ({"max_candidates": 0}, "max_candidates"),
            ({"max_candidates": 1025}, "max_candidates"),
            ({"min_candidates": 0}, "min_candidates"),
            ({"mode": routing_pb2.ROUTING_MODE_EXPLICIT}, "mode"),
        ],
    )
    def test_what_is_out_of_range_is_refused_where_it_stands(self, fields, place):
        with pytest.raises(InvalidInput) as raised:
            options_from_wire(router_pb2.RoutingOptions(**fields), tenant=None)
        assert raised.value.place == place
