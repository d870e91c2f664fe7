from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import ADAPTER_NAME_PATTERN
from hilora_lab.testbed.tasks import (
    DOMAINS,
    FAMILIES,
    TAUGHT_FAMILIES,
    UNSEEN_FAMILIES,
    draw_example,
    prompt_of,
    tasks_of,
)

LETTERS, DIGITS, _CAPITALS = DOMAINS
BY_NAME = {family.name: family for family in FAMILIES}
TASKS = tasks_of(FAMILIES)

payloads = st.lists(st.sampled_from(LETTERS.alphabet), min_size=2, max_size=8)


def answer(family, payload, domain=LETTERS):
    return BY_NAME[family].apply(payload.split() if isinstance(payload, str) else payload, domain)


class TestSkills:
    @pytest.mark.parametrize(
        ("family", "payload", "expected"),
        [
            ("copy", "c a b", "c a b"),
            ("reverse", "c a b", "b a c"),
            ("sort", "c a b a", "a a b c"),
            ("descend", "c a b a", "c b a a"),
            ("next", "a y z", "b z a"),
            ("previous", "a b z", "z a y"),
            ("double", "c a", "c c a a"),
            ("rotate", "c a b", "a b c"),
            ("swap", "c a b d e", "a c d b e"),
            ("mirror", "c a b", "c a b b a c"),
            ("behead", "c a b", "a b"),
            ("alternate", "c a b d e", "a d"),
            ("ends", "c a b d", "c d"),
            ("reverse-next", "c a z", "a b d"),
        ],
    )
    def test_an_example_of_each(self, family, payload, expected):
        assert answer(family, payload) == expected.split()

    def test_every_family_has_an_example_above(self):
        marks = type(self).test_an_example_of_each.pytestmark[0].args[1]

        assert {family for family, _, _ in marks} == set(BY_NAME)

    @given(payloads)
    def test_skills_that_are_each_others_inverse(self, payload):
        assert answer("reverse", answer("reverse", payload)) == payload
        assert answer("previous", answer("next", payload)) == payload
        assert answer("swap", answer("swap", payload)) == payload
        assert answer("alternate", answer("double", payload)) == payload
        assert answer("behead", answer("mirror", payload))[-len(payload) :] == answer("reverse", payload)

    @given(payloads)
    def test_sorting_keeps_the_symbols_and_orders_them(self, payload):
        ascending, descending = answer("sort", payload), answer("descend", payload)

        assert Counter(ascending) == Counter(payload)
        assert all(left <= right for left, right in pairwise(ascending))
        assert descending == ascending[::-1]

    @given(payloads)
    def test_a_full_turn_of_the_ring_changes_nothing(self, payload):
        turned = payload
        for _ in payload:
            turned = answer("rotate", turned)

        assert turned == payload

    @given(payloads)
    def test_the_composed_unseen_skill_is_its_two_parts(self, payload):
        assert answer("reverse-next", payload) == answer("next", answer("reverse", payload))

    def test_the_digits_wrap_too(self):
        assert answer("next", "8 9", DIGITS) == ["9", "0"]


class TestTasks:
    def test_twelve_taught_families_and_two_unseen_in_three_domains(self):
        assert (len(TAUGHT_FAMILIES), len(UNSEEN_FAMILIES), len(DOMAINS)) == (12, 2, 3)
        assert len({task.name for task in TASKS}) == 42

    @pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
    def test_a_name_may_be_registered(self, task):
        assert ADAPTER_NAME_PATTERN.fullmatch(task.name)

    def test_no_two_families_share_a_wording(self):
        wordings = [wording for family in FAMILIES for wording in family.wordings]

        assert len(set(wordings)) == len(wordings)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_a_wording_names_the_domain_and_cannot_be_taken_for_payload(self, family):
        symbols = {symbol for domain in DOMAINS for symbol in domain.alphabet}

        for wording in family.wordings:
            assert wording.count("{noun}") == 1
            assert wording == wording.lower()
            assert not symbols & set(wording.split())


class TestExamples:
    @settings(max_examples=30)
    @given(st.sampled_from(TASKS), st.integers(0, 10**6))
    def test_the_answer_is_the_skill_applied_to_what_the_prompt_shows(self, task, seed):
        example = draw_example(task, random.Random(seed))

        instruction, _, rest = example.prompt.partition(" : ")
        payload = rest.removesuffix(" =").split()

        shortest, longest = task.family.payload_lengths
        assert shortest <= len(payload) <= longest
        assert set(payload) <= set(task.domain.alphabet)
        assert example.answer.split() == task.family.apply(payload, task.domain)
        assert instruction in {wording.format(noun=task.domain.noun) for wording in task.family.wordings}

    @pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
    def test_repeating_the_payload_is_right_for_copy_alone(self, task):
        generator = random.Random(0)
        examples = [draw_example(task, generator) for _ in range(50)]

        echoed = [prompt_of("", example.answer.split()).split(" : ")[1] for example in examples]
        repeats = [tail == example.prompt.split(" : ")[1] for tail, example in zip(echoed, examples, strict=True)]

        assert all(repeats) if task.family.name == "copy" else not any(repeats)

    def test_the_same_seed_draws_the_same(self):
        first, second = (draw_example(TASKS[3], random.Random(7)) for _ in range(2))

        assert first == second
