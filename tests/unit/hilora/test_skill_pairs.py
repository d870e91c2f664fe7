from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.character_grams import NUM_GRAMS, SampleGrams, gram_ids
from hilora.lexical_pool import LexicalPool
from hilora.routing_plan import RoutingMode
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.sequence_routing import SequenceRouter
from hilora.skill_pairs import PairMemory, SkillPairs
from tests.builders.skills import SKILLS, nowhere, sample_grams, skill_profiles, worded

NAMES = list(SKILLS)
TWO = worded("reverse the letters and write them backwards and then replace each by its successor", 1)


def pairs(names: list[str] = NAMES, *, unknown: frozenset[str] = frozenset()) -> SkillPairs:
    grams = [None if name in unknown else sample_grams(name) for name in names]
    counts = [None if one is None else one.counts() for one in grams]
    lexical = LexicalPool.fit(counts)
    everybody = np.arange(len(names))
    return SkillPairs(
        grams.__getitem__,
        lexical.weights_G,
        rivals_of=lambda place: np.delete(everybody, place),
        memory=PairMemory(),
    )


def found(text: str, names: list[str] = NAMES, **kinds) -> tuple[str, str] | None:
    pair = pairs(names, **kinds).find(text, gram_ids(text), np.arange(len(names)))
    return None if pair is None else (names[pair.first], names[pair.second])


class TestPairs:
    def test_two_skills_in_the_order_of_the_text(self):
        assert found(TWO) == ("reverse", "next")
        other = worded("replace the letters each by its successor and then reverse and write them backwards", 2)
        assert found(other) == ("next", "reverse")

    def test_its_figures_are_those_of_the_definition_empty_samples_among_them(self):
        texts = [["", "swap the letters"], ["replace each by its successor", ""], [], ["sort the letters", "", ""]]
        weights_G = np.random.default_rng(0).random(NUM_GRAMS, dtype=np.float32)
        text = "swap the letters and then replace each by its successor"
        everybody = np.arange(len(texts))
        some = SkillPairs(
            [SampleGrams.of(one) for one in texts].__getitem__,
            weights_G,
            rivals_of=lambda place: np.delete(everybody, place),
            memory=PairMemory(),
        )

        def weight(ids: set[int]) -> float:
            return float((weights_G[sorted(ids)].astype(np.float64) ** 2).sum())

        def explains(*samples: str) -> float:
            asked, said = set(gram_ids(text).tolist()), {gram for one in samples for gram in gram_ids(one).tolist()}
            return weight(asked & said) ** 2 / (weight(asked) * weight(said)) if said else 0.0

        pair = some.find(text, gram_ids(text), everybody)
        assert pair is not None
        assert (pair.first, pair.second) == (0, 1)
        together = explains("swap the letters", "replace each by its successor")
        assert pair.explained == pytest.approx(together)
        assert pair.gain == pytest.approx(together / max(explains(one) for few in texts for one in few))

    def test_it_says_how_much_they_explain_and_how_much_better(self):
        pair = pairs().find(TWO, gram_ids(TWO), np.arange(len(NAMES)))
        assert pair is not None
        assert 0.4 < pair.explained <= 1.0
        assert pair.gain > 1.1

    @pytest.mark.parametrize("name", [name for name in SKILLS if "then" not in name])
    def test_one_skill_is_no_pair(self, name):
        assert found(worded(SKILLS[name], 3)) is None

    def test_one_skill_without_its_adapter_is_no_pair_either(self):
        others = [name for name in NAMES if name != "reverse"]
        assert found(worded(SKILLS["reverse"], 3), others) is None

    @pytest.mark.parametrize("text", ["", "w x y", "tell me a story about the moon and a fox that likes to sing"])
    def test_what_nobody_knows_is_no_pair(self, text):
        assert found(text) is None

    def test_skills_that_are_interwoven_are_no_pair(self):
        one, other = SKILLS["reverse"].split(), SKILLS["next"].split()
        mixed = " ".join(word for words in zip(one, other, strict=True) for word in words)
        assert found(worded(mixed, 4)) is None

    def test_an_adapter_for_two_skills_is_no_half(self):
        asked = f"{SKILLS['reverse']} and then duplicate each so that it appears twice"
        text = worded(asked, 5)
        assert found(text) == ("reverse", "double")

    def test_adapters_whose_texts_are_not_known_take_no_part(self):
        assert found(TWO, unknown=frozenset({"sort", "swap"})) == ("reverse", "next")
        assert found(TWO, unknown=frozenset(NAMES)) is None
        assert found(TWO, unknown=frozenset({"next"})) is None

    def test_only_those_that_may_be_chosen_are(self):
        places = np.array([place for place, name in enumerate(NAMES) if name != "next"])
        pair = pairs().find(TWO, gram_ids(TWO), places)
        assert pair is None or pair.second != NAMES.index("next")

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 2**16))
    def test_the_order_of_the_pool_makes_no_difference(self, seed):
        shuffled = list(NAMES)
        random.Random(seed).shuffle(shuffled)
        assert found(TWO, shuffled) == ("reverse", "next")


class TestCombinations:
    def test_they_are_known_by_their_samples(self):
        known = pairs()
        assert [name for place, name in enumerate(NAMES) if known.is_combination(place)] == ["sort-then-double"]

    def test_nothing_is_said_of_one_whose_halves_are_not_there(self):
        names = [name for name in NAMES if name not in {"sort", "double"}]
        assert not pairs(names).is_combination(names.index("sort-then-double"))

    def test_nor_of_one_whose_texts_are_not_known(self):
        assert not pairs(unknown=frozenset({"sort-then-double"})).is_combination(NAMES.index("sort-then-double"))


class TestRouter:
    ROUTER = SequenceRouter(skill_profiles(), catalog_generation=3)

    def decide(self, text: str, *, router: SequenceRouter = ROUTER, **changes):
        return router.decide(nowhere(), settings=RoutingSettings(**changes), grams=gram_ids(text), text=text)

    def test_both_read_and_the_first_writes(self):
        decision = self.decide(TWO)
        first, second = decision.plan.budgets
        assert (first.adapter_name, first.weight, first.reading_weight) == ("reverse", 1.0, 1.0)
        assert (second.adapter_name, second.weight, second.reading_weight) == ("next", 0.0, 1.0)
        assert all(budget.num_rocs == budget.lora_rank for budget in decision.plan.budgets)
        assert decision.is_out_of_distribution
        assert decision.plan.catalog_generation == 3
        assert "reverse and then next" in decision.reason
        assert {"reverse", "next"} <= {one.adapter_name for one in decision.candidates}

    @pytest.mark.parametrize(
        "changes",
        [
            {"combine_skills": False},
            {"max_candidates": 1},
            {"score_rule": ScoreRule.GAUSSIAN},
        ],
    )
    def test_the_rules_can_leave_it_out(self, changes):
        assert not self.decide(TWO, **changes).plan.has_phases

    def test_without_the_text_nothing_is_said_of_two_skills(self):
        decision = self.ROUTER.decide(nowhere(), settings=RoutingSettings(), grams=gram_ids(TWO))
        assert not decision.plan.has_phases

    def test_the_papers_mode_knows_nothing_of_it(self):
        decision = self.ROUTER.decide(
            nowhere(), settings=RoutingSettings.for_mode(RoutingMode.PAPER), grams=gram_ids(TWO), text=TWO
        )
        assert not decision.plan.has_phases

    def test_a_text_that_an_adapter_explains_is_not_looked_at(self):
        z_E = self.ROUTER.pool.profiles[2].samples_ME[0]
        decision = self.ROUTER.decide(z_E, settings=RoutingSettings(), grams=gram_ids(TWO), text=TWO)
        assert not decision.is_out_of_distribution
        assert not decision.plan.has_phases

    def test_excluded_adapters_are_no_halves(self):
        decision = self.ROUTER.decide(
            nowhere(), settings=RoutingSettings(), exclude=frozenset({"next"}), grams=gram_ids(TWO), text=TWO
        )
        assert "next" not in {budget.adapter_name for budget in decision.plan.budgets}

    def test_a_newcomer_is_a_half_at_once(self):
        fitted = [profile for profile in skill_profiles() if profile.adapter_name != "next"]
        newcomer = [profile for profile in skill_profiles() if profile.adapter_name == "next"]
        router = SequenceRouter(fitted, catalog_generation=1).extended(newcomer, catalog_generation=2)
        names = [budget.adapter_name for budget in self.decide(TWO, router=router).plan.budgets]
        assert names == ["reverse", "next"]

    def test_one_that_came_after_the_fit_is_a_half_and_the_fit_is_not_looked_at_anew(self, monkeypatch):
        router = SequenceRouter([one for one in skill_profiles() if one.adapter_name != "next"], catalog_generation=1)
        newcomers = [one for one in skill_profiles() if one.adapter_name == "next"]
        extended = router.extended(newcomers, catalog_generation=2)
        first, second = self.decide(TWO, router=extended).plan.budgets
        assert (first.adapter_name, second.adapter_name) == ("reverse", "next")

        def fail(*_):
            raise AssertionError("it was known")

        monkeypatch.setattr(SkillPairs, "_looks_combined", fail)
        again = router.extended(newcomers, catalog_generation=3)
        assert self.decide(TWO, router=again).plan.has_phases

    def test_a_new_fit_is_prepared_for_what_was_asked_of_the_last_one(self, monkeypatch):
        profiles = skill_profiles()
        last = SequenceRouter(profiles, catalog_generation=1)
        self.decide(TWO, router=last)
        new = SequenceRouter(profiles, catalog_generation=2)
        new.prepare_like(last)

        def fail(*_):
            raise AssertionError("it was worked out before")

        monkeypatch.setattr(SkillPairs, "_looks_combined", fail)
        assert self.decide(TWO, router=new).plan.has_phases
        with pytest.raises(AssertionError, match="worked out before"):
            self.decide(TWO, router=SequenceRouter(profiles, catalog_generation=3))
