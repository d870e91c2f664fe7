from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.router.call_object import ArgumentsText, CallName, CallObject, JsonSpan

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_ARGUMENTS = st.dictionaries(st.text(max_size=4), _JSON, max_size=3)


def cut(text, places):
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


def read(pieces):
    """The reader, the names it told, the arguments, and what came after the object."""
    reader, names, arguments, rest = CallObject(), [], "", ""
    for piece in pieces:
        for news in reader.feed(piece):
            if isinstance(news, CallName):
                names.append(news.name)
            else:
                arguments += news.text
        rest += piece[reader.num_read :]
    return reader, names, arguments, rest


class TestWhole:
    @given(
        name=st.text(min_size=1, max_size=5),
        arguments=_ARGUMENTS,
        more=st.dictionaries(st.sampled_from(["id", "type", "x"]), _JSON, max_size=2),
        order=st.permutations([0, 1, 2]),
        indent=st.none() | st.just(2),
        places=st.lists(st.integers(0, 500), max_size=6),
        word=st.sampled_from(["arguments", "parameters"]),
        is_quoted=st.booleans(),
    )
    def test_it_reads_what_json_reads_wherever_it_is_cut(
        self, name, arguments, more, order, indent, places, word, is_quoted
    ):
        written = json.dumps(arguments) if is_quoted else arguments
        parts = [{"name": name}, {word: written}, more]
        text = json.dumps({key: value for place in order for key, value in parts[place].items()}, indent=indent)
        reader, names, told, rest = read(cut(f"{text} behind", places))
        assert reader.is_done
        assert (names, json.loads(told), rest) == ([name], arguments, " behind")

    def test_arguments_go_out_as_they_come(self):
        reader = CallObject()
        assert list(reader.feed('{"name": "f", "arguments": {"a')) == [CallName(name="f"), ArgumentsText(text='{"a')]
        assert list(reader.feed('": 1')) == [ArgumentsText(text='": 1')]
        assert list(reader.feed("}}")) == [ArgumentsText(text="}")]

    def test_a_call_without_arguments_has_an_empty_object(self):
        assert read(['{"name": "f"}'])[2] == "{}"


class TestBroken:
    @given(st.text(alphabet='{}[]":,\\ae 1', max_size=30))
    def test_nothing_that_is_no_object_is_done(self, text):
        reader, names, _, _ = read([text])
        if reader.is_done:
            assert names
        assert not (reader.is_done and reader.is_broken)

    def test_objects_without_a_name_are_none(self):
        for text in ("{}", '{"arguments": {}}', '{"name": 1}', '{"name": ""}', "[", "x", '{"": 1}', "{'name': 'f'}"):
            reader, names, _, _ = read([text])
            assert reader.is_broken, text
            assert not names


class TestSpan:
    @given(value=_JSON, places=st.lists(st.integers(0, 500), max_size=5))
    def test_it_ends_where_the_value_ends(self, value, places):
        text = json.dumps(value)
        span, num_read = JsonSpan(), 0
        for piece in cut(f"{text}, more", places):
            if not span.is_complete:
                num_read += span.feed(piece)
        assert span.is_complete
        assert num_read == len(text)
