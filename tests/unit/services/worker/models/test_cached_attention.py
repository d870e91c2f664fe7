"""Attention over every layout of the cache equals attention by the book."""

from __future__ import annotations

import random

import pytest

from services.worker.models.attention_product import AttentionRule
from tests.builders.kv import FULL, LAYOUTS, Sequences, make_cache

_RULES = {
    "full": FULL,
    "window": AttentionRule(scaling=0.5, window=5),
    "window_of_one": AttentionRule(scaling=0.5, window=1),
    "softcap": AttentionRule(scaling=0.5, softcap=1.5),
    "window_and_softcap": AttentionRule(scaling=0.5, window=6, softcap=1.5),
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> str:
    return request.param


@pytest.mark.parametrize("rule", _RULES.values(), ids=_RULES.keys())
@pytest.mark.parametrize("num_heads", [2, 6])
class TestAgainstDenseAttention:
    def test_chunks_then_decoding(self, layout, rule, num_heads) -> None:
        sequences = Sequences(make_cache(layout), num_heads=num_heads)
        sequences.begin("a", range(9))
        sequences.begin("b", range(3))
        sequences.step([], [("a", 4), ("b", 3)], rule)
        sequences.step(["b"], [("a", 5)], rule)
        for _ in range(8):
            sequences.step(["b", "a"], [], rule)

    def test_tokens_at_one_position(self, layout, rule, num_heads) -> None:
        sequences = Sequences(make_cache(layout), num_heads=num_heads)
        for owner in "abc":
            sequences.begin(owner, range(7))
        sequences.step([], [(owner, 7) for owner in "abc"], rule)
        for _ in range(6):
            sequences.step(["c", "a", "b"], [], rule)

    def test_a_gap_between_slots(self, layout, rule, num_heads) -> None:
        sequences = Sequences(make_cache(layout), num_heads=num_heads)
        for owner in "abc":
            sequences.begin(owner, range(5))
        sequences.step([], [(owner, 5) for owner in "abc"], rule)
        sequences.step(["a", "c"], [], rule)
        sequences.end("b")
        sequences.step(["c", "a"], [], rule)


class TestManyLengths:
    def test_one_long_sequence_among_short_ones(self, layout) -> None:
        """Long enough apart to be read by several products."""
        sequences = Sequences(make_cache(layout, num_seqs=6, max_len=900))
        for owner in "abcdef":
            sequences.begin(owner, range(3))
            sequences.step([], [(owner, 3)])
        for owner in "be":
            sequences.step([], [(owner, 600)], AttentionRule(scaling=0.5, window=1))
        sequences.step(list("fbadec"), [])
        sequences.step(list("cbf"), [], _RULES["window"])

    @pytest.mark.parametrize("seed", range(4))
    def test_random_steps(self, layout, seed) -> None:
        rng = random.Random(seed)
        sequences = Sequences(make_cache(layout, num_seqs=4), seed=seed)
        for step in range(40):
            if len(sequences.handles) < 4 and rng.random() < 0.5:
                sequences.begin(f"s{step}", range(rng.randint(1, 12)))
            for owner in [owner for owner, num in sequences.num_written.items() if num > 18]:
                sequences.end(owner)
            ready = list(sequences.handles)
            rng.shuffle(ready)
            num_decodes = rng.randint(0, len(ready))
            decodes = ready[:num_decodes]
            chunks = [(owner, rng.randint(1, 5)) for owner in ready[num_decodes:]]
            if ready:
                sequences.step(decodes, chunks, rng.choice(list(_RULES.values())))
            sequences.cache.check_integrity()
