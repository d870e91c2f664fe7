from __future__ import annotations

import pytest

from hilora.errors import InvalidInput
from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.pool import chosen_families, draw_task_lines, recipe_for
from hilora_lab.testbed.tasks import TAUGHT_FAMILIES, UNSEEN_FAMILIES, tasks_of

TAUGHT = tasks_of(TAUGHT_FAMILIES)


class TestFamilies:
    def test_no_name_means_all(self):
        assert chosen_families([]) == TAUGHT_FAMILIES

    def test_names_choose_and_repeat_once(self):
        assert [family.name for family in chosen_families(["sort", "copy", "sort"])] == ["sort", "copy"]

    @pytest.mark.parametrize("name", ["singing", UNSEEN_FAMILIES[0].name])
    def test_what_is_not_taught_is_refused(self, name):
        with pytest.raises(InvalidInput) as caught:
            chosen_families([name])

        assert caught.value.code == "unknown_family"


class TestForms:
    def test_the_pool_mixes_forms_but_most_are_plain(self):
        common = AdapterRecipe()
        recipes = [recipe_for(task, common) for task in TAUGHT]

        assert any(recipe.use_rslora for recipe in recipes)
        assert any(recipe.rank_pattern for recipe in recipes)
        assert {recipe.lora_rank for recipe in recipes} == {4, 8, 16}
        assert sum(recipe == common for recipe in recipes) > len(recipes) / 2

    @pytest.mark.parametrize("task", TAUGHT, ids=lambda task: task.name)
    def test_the_scaling_is_the_common_one(self, task):
        common = AdapterRecipe()
        recipe = recipe_for(task, common)

        root = recipe.lora_rank**0.5 if recipe.use_rslora else recipe.lora_rank
        scalings = [recipe.lora_alpha / root]
        scalings += [dict(recipe.alpha_pattern)[name] / rank for name, rank in recipe.rank_pattern]

        assert scalings == [common.lora_alpha / common.lora_rank] * len(scalings)


class TestLines:
    @pytest.mark.parametrize("task", TAUGHT[:6], ids=lambda task: task.name)
    def test_splits_have_their_sizes_and_share_no_prompt(self, task):
        lines = draw_task_lines(task, seed=3)

        assert [sum(line.split == split for line in lines) for split in ("fit", "dev", "test")] == [20, 16, 24]
        assert len({line.prompt for line in lines}) == 60

    def test_an_unseen_task_has_no_fit_lines(self):
        lines = draw_task_lines(tasks_of(UNSEEN_FAMILIES)[0], seed=3)

        assert {line.split for line in lines} == {"dev", "test"}

    def test_the_fit_lines_use_every_wording(self):
        task = TAUGHT[0]
        lines = [line for line in draw_task_lines(task, seed=3) if line.split == "fit"]

        used = {line.prompt.split(" : ")[0] for line in lines}

        assert used == {wording.format(noun=task.domain.noun) for wording in task.family.wordings}

    def test_another_seed_draws_others(self):
        assert draw_task_lines(TAUGHT[0], seed=1) != draw_task_lines(TAUGHT[0], seed=2)
