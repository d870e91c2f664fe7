from __future__ import annotations

import pytest
from pydantic import ValidationError

from hilora.errors import InvalidInput
from hilora.routing_plan import GateScope, RocScore, RoutingMode
from services.router.entrypoints.openai.hilora_options import HiloraOptions
from services.router.routing_options import ComposedAdapter, LowConfidencePolicy, RoutedPart, RoutingOptions


def options(**fields):
    return HiloraOptions.model_validate(fields).routing_options("auto")


class TestOptions:
    def test_nothing_said_leaves_all_to_the_router(self):
        assert options() == RoutingOptions()

    def test_every_wish_arrives(self):
        said = options(
            strategy="hilora",
            mode="calibrated",
            k=4,
            min_candidates=2,
            gamma=0.5,
            roc_score="contribution",
            gate_scope="per_adapter",
            adapters=[{"model": "a", "scale": -0.5, "num_rocs": 3}, {"model": "b"}],
            exclude_adapters=["x"],
            tags=["t"],
            min_trust_tier="trusted",
            own_adapter="y",
            plan_id="plan-1",
            session_id="s",
            low_confidence="refuse",
            routed_part="window",
            seed=3,
        )
        assert said == RoutingOptions(
            strategy="hilora",
            mode=RoutingMode.CALIBRATED,
            max_candidates=4,
            min_candidates=2,
            gamma=0.5,
            roc_score=RocScore.CONTRIBUTION,
            gate_scope=GateScope.PER_ADAPTER,
            adapters=(ComposedAdapter(model="a", scale=-0.5, num_rocs=3), ComposedAdapter(model="b")),
            exclude_adapters=frozenset({"x"}),
            tags=frozenset({"t"}),
            min_trust_tier="trusted",
            own_adapter="y",
            plan_id="plan-1",
            session_id="s",
            low_confidence=LowConfidencePolicy.REFUSE,
            routed_part=RoutedPart.WINDOW,
            seed=3,
        )

    def test_two_words_for_one_thing_may_agree(self):
        assert options(k=2, max_candidates=2).max_candidates == 2
        said = HiloraOptions(session_id="s").routing_options("auto", session_id="s")
        assert said.session_id == "s"
        with pytest.raises(InvalidInput) as raised:
            options(k=2, max_candidates=3)
        assert raised.value.code == "contradicting_options"
        with pytest.raises(InvalidInput):
            HiloraOptions(session_id="s").routing_options("auto", session_id="t")

    def test_a_header_names_the_session_too(self):
        assert HiloraOptions().routing_options("auto", session_id="t").session_id == "t"
        assert HiloraOptions().routing_options("auto", session_id="").session_id is None

    @pytest.mark.parametrize(
        ("explain", "candidates", "gating"),
        [(False, False, False), (True, True, False), ("tokens", True, True)],
    )
    def test_what_is_to_be_explained(self, explain, candidates, gating):
        said = HiloraOptions(explain=explain)
        assert (said.explains_candidates, said.explains_gating) == (candidates, gating)

    @pytest.mark.parametrize(
        "fields",
        [
            {"k": 0},
            {"min_candidates": 0},
            {"adapters": [{"model": "a", "scale": float("nan")}]},
            {"adapters": [{"model": "a", "scale": 1e9}]},
            {"adapters": [{"model": "a", "num_rocs": -1}]},
            {"adapters": [{"model": "a"}] * 65},
            {"adapters": [{"scale": 1}]},
            {"explain": "everything"},
            {"low_confidence": "never"},
            {"routed_part": "all"},
            {"roc_score": "x"},
            {"plan_id": ""},
            {"session_id": "x" * 257},
            {"tags": ["x"] * 33},
            {"no_such": 1},
        ],
    )
    def test_anything_else_is_refused(self, fields):
        with pytest.raises(ValidationError):
            HiloraOptions.model_validate(fields)
