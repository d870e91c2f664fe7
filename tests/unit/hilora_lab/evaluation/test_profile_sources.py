"""Routing by profiles of other texts than samples, on a cut of the shipped testbed with a fake encoder."""

from __future__ import annotations

import numpy as np
import pytest

from hilora_lab.evaluation.profile_sources import ProfileBench
from hilora_lab.testbed.folder import Testbed, read_testbed
from tests.builders.system import TESTBED
from tests.fakes.router_encoder import HashEncoder


class KeptTestbed(Testbed):
    """Four tasks of two families, their adapters where they are."""

    @property
    def adapter_names(self):
        return ("copy-letters", "copy-digits", "sort-letters", "sort-digits")


@pytest.fixture(scope="module")
def bench():
    whole = read_testbed(TESTBED)
    return ProfileBench(KeptTestbed(folder=whole.folder, lines=whole.lines), HashEncoder(), limit_per_task=4)


def fit_texts(bench):
    return {name: bench._samples[name] for name in bench._names}


class TestScore:
    def test_prompts_of_the_task_itself_are_the_upper_end(self, bench):
        pool, guest = bench.score("samples", fit_texts(bench))
        assert (pool.setting, guest.setting) == ("pool", "guest")
        assert pool.num_prompts == 16
        assert pool.own_first == guest.own_first
        assert pool.own_among_three.value >= pool.own_first.value

    def test_an_adapter_without_texts_is_never_found(self, bench):
        texts = dict.fromkeys(fit_texts(bench), ()) | {"sort-letters": ("sort the letters",)}
        pool, guest = bench.score("none", texts)
        assert pool.own_first.value <= 0.25
        assert guest.own_among_three.value <= 0.25

    def test_intervals_hold_their_values(self, bench):
        for score in bench.score("samples", fit_texts(bench)):
            for share in (score.own_first, score.own_among_three, score.family_first):
                assert 0 <= share.low <= share.value <= share.high <= 1

    def test_the_same_texts_score_the_same(self, bench):
        assert bench.score("samples", fit_texts(bench)) == bench.score("samples", fit_texts(bench))


class TestTexts:
    def test_portraits_are_those_of_the_adapter_and_repeatable(self, bench):
        from hilora.self_portrait import portrait_prompts

        sitter = bench._sitter()
        prompts = portrait_prompts(("write", ""))[:4]
        first = sitter.texts("copy-letters", 8, prompts)
        assert first == sitter.texts("copy-letters", 8, prompts)
        assert first != sitter.texts("sort-digits", 8, prompts)
        assert all(text.startswith("write") for text in first[::2])
        assert np.array([isinstance(text, str) for text in first]).all()
