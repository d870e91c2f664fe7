from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.errors import InvalidInput
from hilora.version_selector import select_version, split_reference


@dataclass(frozen=True)
class Version:
    version: int
    revision: str


VERSIONS = [Version(1, "12345678" + "a" * 56), Version(2, "12345679" + "b" * 56), Version(12345, "f" * 64)]


class TestReferences:
    @pytest.mark.parametrize(
        ("reference", "parts"),
        [
            ("sorter", ("sorter", None)),
            ("sorter@3", ("sorter", "3")),
            ("sorter@12345678", ("sorter", "12345678")),
            ("so.rt_er-2@" + "a" * 64, ("so.rt_er-2", "a" * 64)),
        ],
    )
    def test_name_and_selector_come_apart(self, reference, parts):
        assert split_reference(reference) == parts

    @pytest.mark.parametrize(
        "reference", ["", "@1", "a@", "a@b", "a@1@2", "a@abc", "a@-1", "a@" + "a" * 65, "a b@1", "a@٣"]
    )
    def test_what_names_no_version_is_refused(self, reference):
        with pytest.raises(InvalidInput) as raised:
            split_reference(reference)
        assert raised.value.code == "invalid_adapter_reference"


class TestSelection:
    @pytest.mark.parametrize(
        ("selector", "number"),
        [("1", 1), ("2", 2), ("12345", 12345), ("12345678", 1), ("12345679b", 2), ("f" * 64, 12345)],
    )
    def test_a_number_or_a_unique_beginning_finds_its_version(self, selector, number):
        assert select_version(VERSIONS, selector).version == number

    @pytest.mark.parametrize("selector", ["3", "1234567", "00000000", "", "../../etc", "ffffffff" * 9])
    def test_anything_else_finds_nothing(self, selector):
        assert select_version(VERSIONS, selector) is None

    def test_a_beginning_of_several_finds_nothing(self):
        twins = [Version(1, "a" * 64), Version(2, "a" * 63 + "b")]
        assert select_version(twins, "a" * 12) is None
        assert select_version(twins, "a" * 64).version == 1

    @given(st.text())
    def test_no_text_breaks_it(self, text):
        select_version(VERSIONS, text)
