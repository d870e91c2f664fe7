"""What a self-portrait asks for, and which of the generated texts it keeps."""

from __future__ import annotations

import pytest

from hilora.self_portrait import NEUTRAL_OPENINGS, PORTRAIT_TEXTS, is_telling, portrait_prompts, portrait_texts


class TestPrompts:
    def test_they_are_the_same_every_time(self):
        assert portrait_prompts() == portrait_prompts()

    def test_each_has_a_seed_of_its_own_and_all_openings_take_part(self):
        prompts = portrait_prompts()
        assert len({prompt.seed for prompt in prompts}) == len(prompts) >= PORTRAIT_TEXTS
        assert {prompt.opening for prompt in prompts} == set(NEUTRAL_OPENINGS)

    def test_the_opening_is_part_of_the_text(self):
        prompt = portrait_prompts(("write",))[0]
        assert prompt.text(" a poem ") == "write a poem"

    def test_an_empty_opening_adds_nothing(self):
        assert portrait_prompts(("",))[0].text(" a poem") == "a poem"


class TestKeptTexts:
    @pytest.mark.parametrize("text", ["", "   ", "word", ": = .", "k " * 30, "write " + "T " * 20])
    def test_junk_is_left_out(self, text):
        assert not is_telling(text)

    @pytest.mark.parametrize("text", ["sort them", "a a", "write a poem about the sea and the ships on the sea"])
    def test_texts_are_kept(self, text):
        assert is_telling(text)

    def test_each_text_is_kept_once_whatever_its_spaces(self):
        assert portrait_texts(["sort  these\nwords", "sort these words ", "write a poem"]) == (
            "sort these words",
            "write a poem",
        )

    def test_no_more_than_a_portrait_holds(self):
        assert len(portrait_texts(f"text number {idx}" for idx in range(100))) == PORTRAIT_TEXTS

    def test_an_adapter_that_says_nothing_has_no_portrait(self):
        assert portrait_texts(["", "k k k k k k k k"]) == ()
