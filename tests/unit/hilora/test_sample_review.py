"""Descriptions that nobody should be routed by."""

from __future__ import annotations

import numpy as np
import pytest

from hilora import sample_review
from hilora.sample_review import DescribedAdapter, DoubtKind, SampleReview, doubts_about

DIM = 96


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def samples_of(task, *, num_samples=20, seed=0):
    """Texts near a task's own direction."""
    generator = np.random.default_rng([task, seed])
    rows = generator.normal(0.0, 0.06, size=(num_samples, DIM))
    rows[:, task] += 1.0
    return unit(rows)


def adapter(name, samples, *, at=0.0):
    return DescribedAdapter(adapter_name=name, arrived_at=at, samples_ME=samples)


@pytest.fixture
def honest():
    return [adapter(f"task-{task}", samples_of(task), at=task) for task in range(24)]


class TestHonest:
    def test_nobody_is_doubted(self, honest):
        assert doubts_about(honest) == {}

    def test_a_second_adapter_for_a_task_is_honest(self, honest):
        assert doubts_about([*honest, adapter("again", samples_of(3, seed=1), at=99)]) == {}

    @pytest.mark.parametrize("num_skills", [2, 4])
    def test_an_adapter_of_several_skills_is_honest(self, honest, num_skills):
        mixed = np.concatenate([samples_of(task, num_samples=20 // num_skills, seed=1) for task in range(num_skills)])

        assert doubts_about([*honest, adapter("kit", mixed, at=99)]) == {}

    def test_small_pools_and_single_samples_are_nothing_to_compare(self):
        assert doubts_about([adapter("alone", samples_of(0))]) == {}
        assert doubts_about([adapter(f"one-{task}", samples_of(task, num_samples=1)) for task in range(3)]) == {}


class TestCopies:
    def test_the_later_one_is_the_copy(self, honest):
        doubts = doubts_about([adapter("thief", samples_of(5), at=99), *honest])

        assert {name: doubt.kind for name, doubt in doubts.items()} == {"thief": DoubtKind.COPIED_SAMPLES}
        assert "task-5" in doubts["thief"].message

    def test_rounding_by_the_batch_makes_no_difference(self, honest):
        nudged = samples_of(5) + np.random.default_rng(0).normal(0, 1e-7, size=(20, DIM)).astype(np.float32)

        assert set(doubts_about([*honest, adapter("thief", nudged, at=99)])) == {"thief"}

    def test_some_common_texts_are_no_copy(self, honest):
        some = np.concatenate([samples_of(5)[:8], samples_of(5, num_samples=12, seed=1)])

        assert doubts_about([*honest, adapter("similar", some, at=99)]) == {}


class TestClaims:
    def test_samples_of_everything_are_doubted(self, honest):
        everything = np.concatenate([samples_of(task, num_samples=1, seed=1) for task in range(20)])

        doubts = doubts_about([*honest, adapter("greedy", everything, at=99)])

        assert {name: doubt.kind for name, doubt in doubts.items()} == {"greedy": DoubtKind.SAMPLES_OF_MANY}

    def test_the_order_of_the_pool_makes_no_difference(self, honest):
        everything = np.concatenate([samples_of(task, num_samples=1, seed=1) for task in range(20)])
        pool = [*honest, adapter("greedy", everything, at=99), adapter("thief", samples_of(5), at=98)]

        assert doubts_about(pool) == doubts_about(pool[::-1])


class TestAgain:
    def test_only_new_samples_are_read(self, honest, monkeypatch):
        review = SampleReview()
        review.doubts_about(honest)
        read = []
        keys = sample_review._keys
        monkeypatch.setattr(sample_review, "_keys", lambda samples_ME: (read.append(samples_ME), keys(samples_ME))[1])
        thief = adapter("thief", samples_of(5), at=99)

        assert set(review.doubts_about([*honest, thief])) == {"thief"}
        assert len(read) == 1 and read[0] is thief.samples_ME

    def test_it_says_what_a_first_look_says_whatever_came_and_went(self, honest):
        review = SampleReview()
        everything = np.concatenate([samples_of(task, num_samples=1, seed=1) for task in range(20)])
        greedy, thief = adapter("greedy", everything, at=99), adapter("thief", samples_of(5), at=98)
        without_5 = [one for one in honest if one.adapter_name != "task-5"]
        for pool in (
            [*honest, greedy],
            [*honest, greedy, thief],
            [*without_5, thief],
            [thief],
            [*honest, thief],
            honest,
        ):
            assert review.doubts_about(pool) == doubts_about(pool)
        assert set(review.doubts_about([*without_5, thief])) == set()
