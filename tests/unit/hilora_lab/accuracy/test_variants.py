"""Strategies with departures, as texts."""

from __future__ import annotations

import pytest

from hilora.errors import HiloraError
from hilora.routing_settings import ScoreRule
from hilora_lab.accuracy.variants import parse_variant, split_variants


def test_a_name_alone_departs_in_nothing():
    assert parse_variant("uniform") == ("uniform", {})


def test_values_have_their_fields_types():
    text = "hilora:score_rule=gaussian;gamma=0.2;max_candidates=5;confidence_following=false"

    assert parse_variant(text) == (
        "hilora",
        {"score_rule": ScoreRule.GAUSSIAN, "gamma": 0.2, "max_candidates": 5, "confidence_following": False},
    )


def test_lists_are_set_apart_by_commas():
    assert split_variants("hilora, hilora:gamma=0.2;min_candidates=1 ,") == (
        "hilora",
        "hilora:gamma=0.2;min_candidates=1",
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("magic", "unknown_strategy"),
        ("hilora:colour=red", "invalid_variant"),
        ("hilora:gamma=much", "invalid_variant"),
        ("hilora:confidence_following=1", "invalid_variant"),
        ("hilora:score_rule=luck", "invalid_variant"),
    ],
)
def test_what_has_no_meaning_is_refused(text, code):
    with pytest.raises(HiloraError) as caught:
        parse_variant(text)

    assert caught.value.code == code
