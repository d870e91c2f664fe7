"""The compiled kernels for the letters of texts against the NumPy forms that say what they compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora import text_kernels
from hilora.character_grams import NUM_GRAMS, SampleGrams, gram_ids
from hilora.lexical_pool import LexicalPool
from hilora.skill_contest import MAX_COMPARED, Contest, Contestant, gram_lengths, hold_contest
from hilora.text_kernels import are_text_kernels_compiled, native

VOCABULARY = [
    "reverse",
    "the",
    "letters",
    "sort",
    "them",
    "and",
    "then",
    "swap",
    "each",
    "by",
    "its",
    "next",
    "one",
    "7",
    "é",
    "😀",
]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=9)
TEXTS = WORDS.map(" ".join)
POOLS = st.lists(st.lists(TEXTS, min_size=1, max_size=5), min_size=1, max_size=2 * MAX_COMPARED)


def in_numpy(compute):
    """What a function says without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_kernels, "native", None)
        assert not are_text_kernels_compiled()
        return compute()


def test_they_are_compiled_where_tests_run():
    assert are_text_kernels_compiled()


@settings(deadline=None)
@given(st.text(max_size=60) | TEXTS)
def test_grams_are_the_same_numbers(text):
    assert gram_ids(text).tolist() == in_numpy(lambda: gram_ids(text)).tolist()


@pytest.mark.parametrize("text", ["", " \n ", "a", "ab", "\ud800", "İ" * 5000, "x" * 5000, "\x00\x02"])
def test_grams_of_odd_texts_too(text):
    assert gram_ids(text).tolist() == in_numpy(lambda: gram_ids(text)).tolist()


@settings(deadline=None, max_examples=40)
@given(pool=POOLS, text=TEXTS, seed=st.integers(0, 99))
def test_lexical_scores_are_the_same(pool, text, seed):
    grams = [SampleGrams.of(texts) for texts in pool]
    lexical = LexicalPool.fit([one.counts() for one in grams])
    places = np.random.default_rng(seed).permutation(len(grams))
    asked = gram_ids(text)
    expected = in_numpy(lambda: lexical.scores(asked, places))
    assert lexical.scores(asked, places) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(
    pool=POOLS, text=TEXTS, seed=st.integers(0, 99), least=st.sampled_from([0.0, 0.4]), gain=st.sampled_from([0.0, 1.1])
)
def test_contests_end_the_same(pool, text, seed, least, gain):
    squares_G = np.random.default_rng(seed).uniform(0.5, 2.0, NUM_GRAMS).astype(np.float32)
    grams = [SampleGrams.of(texts) for texts in pool]
    contestants = [
        Contestant(place=10 + place, grams=one, lengths_M=gram_lengths(one, squares_G))
        for place, one in enumerate(grams)
    ]
    asked = gram_ids(text)

    def held() -> Contest | None:
        return hold_contest(contestants, asked, squares_G, least=least, least_gain=gain)

    found, expected = held(), in_numpy(held)
    if found is None or expected is None:
        assert found is expected is None
        return
    assert [one.place for one in found.contestants] == [one.place for one in expected.contestants]
    assert found.ordinals == expected.ordinals
    for name in ("alone_K", "lengths_K", "joint_KK", "least_own_KK"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-12)
    assert [found.best_sample(row).tolist() for row in range(len(found.ordinals))] == [
        expected.best_sample(row).tolist() for row in range(len(found.ordinals))
    ]


class TestBuffers:
    """Nothing is read or written beyond a buffer, whatever is handed over."""

    def call_contest(
        self, entrant, *, asked=3, weights=3, table=NUM_GRAMS, figures=(2, MAX_COMPARED), square=MAX_COMPARED
    ):
        assert native is not None
        return native.contest(
            [entrant],
            np.arange(asked, dtype=np.uint16),
            np.ones(weights, dtype=np.float32),
            np.ones(table, dtype=np.float32),
            0.0,
            0.0,
            np.empty(figures, dtype=np.int64),
            np.empty(figures),
            np.empty(square**2),
            np.empty(square**2),
        )

    ENTRANT = (np.arange(3, dtype=np.uint16), np.array([1, 2], dtype=np.uint32), np.ones(2))

    def test_what_belongs_together_is_taken(self):
        assert self.call_contest(self.ENTRANT) == 0  # one alone is no contest

    @pytest.mark.parametrize("sizes", [[1, 3], [1, 1], [2**32 - 1, 4]])
    def test_samples_that_are_not_the_grams(self, sizes):
        entrant = (self.ENTRANT[0], np.array(sizes, dtype=np.uint32), self.ENTRANT[2])
        with pytest.raises(ValueError, match="do not belong together"):
            self.call_contest(entrant)
        assert self.call_contest(self.ENTRANT) == 0

    @pytest.mark.parametrize(
        "sizes", [{"weights": 2}, {"table": 100}, {"figures": (2, 3)}, {"square": 3}, {"asked": 4}]
    )
    def test_tables_of_other_sizes(self, sizes):
        with pytest.raises(ValueError, match="do not belong together"):
            self.call_contest(self.ENTRANT, **sizes)

    @pytest.mark.parametrize("entrant", [(), (1, 2, 3), (*ENTRANT, 4), None])
    def test_what_is_no_adapter(self, entrant):
        with pytest.raises((TypeError, SystemError)):
            self.call_contest(entrant)
        assert self.call_contest(self.ENTRANT) == 0

    @pytest.mark.parametrize(
        "changed",
        [
            {"places": [2]},
            {"places": [-1]},
            {"num_scores": 2},
            {"width": 0},
            {"width": 3},
            {"num_factors": 1},
            {"table": 9},
        ],
    )
    def test_rows_that_are_not_there(self, changed):
        assert native is not None
        given = {"width": 4, "places": [1], "num_scores": 1, "num_factors": 2, "table": NUM_GRAMS} | changed
        with pytest.raises(ValueError, match="do not belong together"):
            native.lexical_scores(
                np.zeros((2, 4), dtype=np.uint16),
                np.zeros((2, 4), dtype=np.uint8),
                given["width"],
                np.ones(given["num_factors"], dtype=np.float32),
                np.ones(given["num_factors"], dtype=np.float32),
                np.array(given["places"]),
                np.arange(2, dtype=np.uint16),
                np.ones(given["table"], dtype=np.float32),
                np.ones(given["table"], dtype=np.float32),
                np.empty(given["num_scores"]),
            )

    def test_grams_that_have_no_room(self):
        assert native is not None
        with pytest.raises(ValueError, match="more grams than 10 bytes hold"):
            native.gram_ids(np.zeros(2, dtype=np.uint32), np.empty(5, dtype=np.uint16))

    def test_nothing_is_left_in_the_tables(self):
        grams = SampleGrams.of(["sort the letters", "swap them"])
        lexical = LexicalPool.fit([grams.counts(), SampleGrams.of(["reverse"]).counts()])
        everybody = np.arange(2)
        first = lexical.scores(gram_ids("sort them"), everybody)
        lexical.scores(gram_ids("something else that is longer, swap the reverse"), everybody)
        assert lexical.scores(gram_ids("sort them"), everybody).tolist() == first.tolist()
