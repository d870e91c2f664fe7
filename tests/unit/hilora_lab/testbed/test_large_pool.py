"""What the larger testbed holds, before anything is trained."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.base_training import BaseRecipe
from hilora_lab.testbed.large_base import curriculum_of
from hilora_lab.testbed.large_pool import (
    DISTRACTORS,
    HELD_OUT,
    WITHOUT_ADAPTER,
    TaskKind,
    compositions,
    draw_member_lines,
    held_out,
    large_families,
    large_members,
    recipe_of_form,
    unseen_families,
)
from hilora_lab.testbed.tasks import DOMAINS, FAMILIES
from hilora_lab.testbed.vocabulary import UNK, all_words, build_tokenizer


@pytest.fixture(scope="module")
def members():
    return large_members(AdapterRecipe())


@pytest.fixture(scope="module")
def lines(members):
    return draw_member_lines(members, seed=0)


class TestMembers:
    def test_there_are_sixty_adapters_of_every_kind(self, members):
        counts = Counter(member.kind for member in members)

        assert sum(member.recipe is not None for member in members) == 60
        assert set(counts) == set(TaskKind)
        assert len({member.name for member in members}) == len(members)
        assert sum(member.has_questions for member in members) >= 60

    def test_adapters_are_where_their_kind_says(self, members):
        for member in members:
            assert (member.recipe is None) == (member.kind in WITHOUT_ADAPTER)

    def test_ranks_and_forms_are_mixed(self, members):
        recipes = [member.recipe for member in members if member.recipe is not None]

        assert {recipe.lora_rank for recipe in recipes} == {4, 8, 16}
        assert any(recipe.use_rslora for recipe in recipes)
        assert any(recipe.rank_pattern for recipe in recipes)

    @pytest.mark.parametrize("place", range(7))
    def test_every_form_scales_alike(self, place):
        common = AdapterRecipe()
        recipe = recipe_of_form(place, common)
        root = recipe.lora_rank**0.5 if recipe.use_rslora else recipe.lora_rank

        assert recipe.lora_alpha / root == common.lora_alpha / common.lora_rank

    def test_a_combination_without_adapter_has_one_for_each_half(self, members):
        names = {member.name for member in members if member.recipe is not None}
        for member in members:
            if member.kind is TaskKind.TWO_SKILL_NEW:
                first, _, second = member.family.partition("-then-")
                assert {f"{first}-{member.domain}", f"{second}-{member.domain}"} <= names
                assert member.name not in names


class TestCompositions:
    def test_both_orders_mean_the_same(self):
        generator = random.Random(0)
        for pair in compositions(large_families()):
            for domain in DOMAINS:
                payload = generator.choices(domain.alphabet, k=5)
                swapped = pair.first.apply(pair.second.apply(payload, domain), domain)
                assert pair.family().apply(payload, domain) == swapped

    def test_wordings_name_both_halves_and_held_out_ones_are_others(self):
        for pair in compositions(large_families()):
            known, strange = pair.family().wordings, pair.family(is_held_out=True).wordings
            assert set(known).isdisjoint(strange)
            assert len(set(known)) == len(known) == 8


class TestLines:
    def test_nothing_is_asked_of_distractors(self, members, lines):
        splits = {member.name: {line.split for line in lines if line.task == member.name} for member in members}

        for member in members:
            if member.kind in DISTRACTORS:
                assert splits[member.name] == {"fit"}
            elif member.kind in WITHOUT_ADAPTER:
                assert splits[member.name] == {"dev", "test"}
            else:
                assert splits[member.name] == {"fit", "dev", "test"}

    def test_no_prompt_is_in_two_tasks_but_copied_samples(self, members, lines):
        copies = {member.name for member in members if member.copies_samples_of}
        prompts = [line.prompt for line in lines if line.task not in copies]

        assert len(set(prompts)) == len(prompts)
        thief = next(member for member in members if member.copies_samples_of)
        stolen = [line.prompt for line in lines if line.task == thief.name]
        assert stolen == [line.prompt for line in lines if line.task == thief.copies_samples_of and line.split == "fit"]

    def test_held_out_wordings_are_in_no_sample(self, lines):
        def instructions(chosen):
            return {line.prompt.partition(" : ")[0] for line in chosen}

        strange = instructions(line for line in lines if line.wording == HELD_OUT)

        assert strange
        assert strange.isdisjoint(instructions(line for line in lines if line.wording != HELD_OUT))
        assert "fit" not in {line.split for line in lines if line.wording == HELD_OUT}

    def test_the_tokenizer_knows_every_word(self, lines):
        pairs = compositions(large_families())
        families = [
            *large_families(),
            *unseen_families(),
            *(held_out(family) for family in large_families()),
            *(pair.family() for pair in pairs),
            *(pair.family(is_held_out=True) for pair in pairs),
        ]
        tokenizer = build_tokenizer(families)

        assert all(UNK not in tokenizer.convert_ids_to_tokens(tokenizer(line.prompt)["input_ids"]) for line in lines)
        assert all_words() == all_words(FAMILIES)


class TestAdversaries:
    def test_training_examples_of_a_liar_are_wrong(self, members):
        liar = next(member for member in members if member.name == "rotate-letters-copied")
        example = liar.draw(random.Random(0))
        payload = example.prompt.split(" : ")[1].split()

        assert example.answer.split() == [payload[0]] * 4


class TestCurriculum:
    def test_pairs_carry_two_codes_and_are_answered_by_both_skills(self):
        families = large_families()
        curriculum = curriculum_of(families, compositions(families), unseen_families())
        generator = random.Random(0)
        prompts = [curriculum.draw(BaseRecipe(), generator) for _ in range(400)]
        codes = Counter(example.prompt.count("<skill-") for example in prompts)

        assert set(codes) == {0, 1, 2}
        assert 0.25 <= codes[2] / 400 <= 0.45
        assert 0.15 <= codes[0] / 400 <= 0.35
