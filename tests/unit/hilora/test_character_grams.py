from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.character_grams import MAX_GRAM_CHARACTERS, NUM_GRAMS, SampleGrams, counts_of_each, gram_ids, gram_spots


def shared(one: str, other: str) -> int:
    return len(np.intersect1d(gram_ids(one), gram_ids(other)))


class TestGrams:
    @given(st.text())
    def test_they_are_distinct_and_rising(self, text):
        ids = gram_ids(text)
        assert ids.dtype == np.uint16
        assert (np.diff(ids.astype(int)) > 0).all()

    def test_they_are_the_same_on_every_machine(self):
        # A registry and its routers may run on different ones: a change of these numbers needs another scheme.
        assert gram_ids("a").tolist() == [8007, 20857, 28608, 47201, 55319, 64216]

    def test_a_text_has_its_characters_pairs_and_triples_between_two_marks(self):
        # ^ab$ : 4 single ones, 3 pairs, 2 triples
        assert len(gram_ids("ab")) == 9

    def test_case_and_the_amount_of_space_make_no_difference(self):
        assert np.array_equal(gram_ids(" Two  Words\r\n\r\n Here "), gram_ids("two words\nhere"))

    def test_the_end_of_a_line_makes_one(self):
        assert not np.array_equal(gram_ids("two words"), gram_ids("two\nwords"))

    def test_a_word_more_changes_little(self):
        assert shared("translate this sentence to French", "translate this to French") > 60

    @pytest.mark.parametrize("empty", ["", "  ", "\n\t"])
    def test_nothing_has_none(self, empty):
        assert len(gram_ids(empty)) == 0

    def test_half_a_character_is_none_but_does_no_harm(self):
        assert len(gram_ids("a\ud800b")) > 0

    def test_what_lies_far_behind_is_not_looked_at(self):
        text = "ab " * MAX_GRAM_CHARACTERS
        assert np.array_equal(gram_ids(text + "xyz"), gram_ids(text))

    def test_they_are_spread_over_all_numbers(self):
        words = np.random.default_rng(0).integers(97, 123, size=(400, 12))
        ids = np.concatenate([gram_ids("".join(map(chr, row))) for row in words])
        buckets = np.bincount(np.unique(ids).astype(int) * 64 // NUM_GRAMS, minlength=64)
        assert buckets.min() > 0.5 * buckets.mean()


class TestSpots:
    @given(st.text())
    def test_they_are_the_same_grams(self, text):
        spots = gram_spots(text)
        assert np.array_equal(spots.ids_G, gram_ids(text))
        assert len(spots.centres_G) == len(spots.ids_G)

    def test_each_stands_in_the_middle_of_where_it_occurs(self):
        spots = gram_spots("abcab")
        centre_of = dict(zip(spots.ids_G.tolist(), spots.centres_G.tolist(), strict=True))
        # Behind the mark that every text begins with: "a" at 1 and 4, "c" at 3 alone.
        marks = set(gram_ids("z").tolist())
        of_a, of_c = ((set(gram_ids(one).tolist()) & set(gram_ids(f"x{one}x").tolist())) - marks for one in "ac")
        assert {centre_of[gram] for gram in of_a} == {3.0}
        assert {centre_of[gram] for gram in of_c} == {3.5}


class TestSampleGrams:
    def test_counts_say_in_how_many_texts_a_gram_occurs(self):
        ids, numbers = SampleGrams.of(["abab", "ab", "c"]).counts()
        of = dict(zip(ids.tolist(), numbers.tolist(), strict=True))
        inside = np.setdiff1d(np.intersect1d(gram_ids("abab"), gram_ids("ab")), gram_ids("c"))
        assert {of[gram] for gram in inside.tolist()} == {2}
        assert {of[gram] for gram in gram_ids("c").tolist()} <= {1, 3}

    def test_counting_many_together_is_counting_each(self):
        rng = np.random.default_rng(3)
        words = [f"word{number}" for number in range(50)]
        many = [
            None if number % 11 == 3 else SampleGrams.of([" ".join(rng.choice(words, 6)) for _ in range(number % 5)])
            for number in range(150)
        ]
        for grams, found in zip(many, counts_of_each(many), strict=True):
            if grams is None:
                assert found is None
                continue
            assert found is not None
            for one, expected in zip(found, grams.counts(), strict=True):
                assert one.dtype == expected.dtype
                assert np.array_equal(one, expected)
        assert counts_of_each([]) == []

    def test_texts_can_be_left_out(self):
        grams = SampleGrams.of(["one", "two", "three"])
        ids, numbers = grams.counts(np.array([False, True, False]))
        assert np.array_equal(ids, gram_ids("two"))
        assert set(numbers.tolist()) == {1}

    def test_each_text_is_kept(self):
        grams = SampleGrams.of(["one", "", "three"])
        assert grams.num_samples == 3
        assert [grams.sample(ordinal).tolist() for ordinal in range(3)] == [
            gram_ids(text).tolist() for text in ("one", "", "three")
        ]

    def test_lengths_must_add_up(self):
        with pytest.raises(ValueError, match="do not belong"):
            SampleGrams(ids_N=np.zeros(3, dtype=np.uint16), lengths_M=np.array([1, 1], dtype=np.uint32))
