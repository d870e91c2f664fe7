"""JSON from strangers: one reading, or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.strict_json import parse_strictly

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class TestParseStrictly:
    @given(tree=TREES, is_escaped=st.booleans())
    def test_sound_documents_are_read_as_they_were_written(self, tree, is_escaped):
        content = json.dumps(tree, ensure_ascii=is_escaped).encode()

        assert parse_strictly(content, max_values=10_000) == tree

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{'a': 1}",
            b'{"a": 1, "a": 1}',
            rb'{"a": 1, "\u0061": 1}',
            b'[{"a": {"b": 1, "b": 2}}]',
            b"[NaN]",
            b"[-Infinity]",
            rb'["\uD800"]',
            rb'{"\udfff": 1}',
            b'["\xff"]',
            b'\xef\xbb\xbf{"a": 1}',
            b"9" * 5000,
            b"[" * 40 + b"]" * 40,
            b"[" * 100_000,
        ],
    )
    def test_what_could_be_read_in_two_ways_or_not_written_again_is_refused(self, content):
        with pytest.raises(ValueError, match=r"\w"):
            parse_strictly(content, max_values=1_000_000)

    @pytest.mark.parametrize("content", [b"[1, 2, 3]", b"[[], 1]", b'{"a": {"b": {}}}'])
    def test_values_are_counted_before_they_are_made(self, content):
        assert parse_strictly(content, max_values=3) is not None
        with pytest.raises(ValueError, match="more than 2 values"):
            parse_strictly(content, max_values=2)

    def test_whole_characters_beyond_16_bits_may_be_escaped(self):
        assert parse_strictly(rb'["\ud83d\ude00"]', max_values=9) == ["\U0001f600"]

    def test_the_mark_of_editors_is_passed_over_where_that_is_asked_for(self):
        assert parse_strictly(b"\xef\xbb\xbf[1]", max_values=9, encoding="utf-8-sig") == [1]
