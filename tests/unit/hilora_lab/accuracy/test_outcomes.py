"""Intervals over tasks, paired."""

from __future__ import annotations

import numpy as np
import pytest

from hilora_lab.accuracy.outcomes import Outcomes, choices, difference, interval, resampled, shares_by
from hilora_lab.testbed.folder import TaskLine


def outcomes(right_by_task):
    lines = [
        TaskLine(task=task, family=task[0], domain="d", split="test", prompt=f"{task} {idx}", answer="x")
        for task, right in right_by_task.items()
        for idx in range(len(right))
    ]
    right = [bool(one) for found in right_by_task.values() for one in found]
    size = len(lines)
    return Outcomes(
        lines=tuple(lines),
        is_right=tuple(right),
        chosen=tuple("a" if one else "" for one in right),
        num_candidates=(1,) * size,
        num_rocs=(8,) * size,
        is_unexplained=(False,) * size,
        decide_seconds=(0.001,) * size,
        forward_seconds=1.0,
    )


class TestIntervals:
    def test_tasks_are_drawn_and_not_lines(self):
        # Ten tasks that are all right or all wrong: as uncertain as ten coins, however many lines they have.
        found = outcomes({f"t{idx}": [idx % 2] * 50 for idx in range(10)})

        low, high = interval(resampled(found, seed=0))

        assert found.exact_match == 0.5
        assert 0.15 <= low <= 0.25
        assert 0.75 <= high <= 0.85

    def test_a_sure_thing_has_no_width(self):
        assert interval(resampled(outcomes({"a": [1, 1], "b": [1]}), seed=0)) == (1.0, 1.0)

    def test_differences_are_paired(self):
        generator = np.random.default_rng(0)
        rights = {f"t{idx}": generator.integers(0, 2, size=20) for idx in range(12)}
        worse = {task: [0, *right[1:]] for task, right in rights.items()}

        gap, (low, high) = difference(outcomes(rights), outcomes(worse), seed=0)

        # Unpaired, the spread of the tasks alone would be wider than the whole gap.
        assert gap > 0
        assert 0 <= low <= gap <= high <= 0.05

    def test_other_tasks_cannot_be_paired(self):
        with pytest.raises(ValueError, match="same tasks"):
            difference(outcomes({"a": [1]}), outcomes({"b": [1]}), seed=0)

    def test_draws_depend_on_the_seed(self):
        found = outcomes({f"t{idx}": [idx % 3 == 0] * 2 for idx in range(9)})

        assert np.array_equal(resampled(found, seed=1), resampled(found, seed=1))
        assert not np.array_equal(resampled(found, seed=1), resampled(found, seed=2))


class TestGroups:
    def test_shares_by_a_field(self):
        assert shares_by(outcomes({"a1": [1, 0], "a2": [1, 1], "b": [0]}), "family") == {"a": 0.75, "b": 0.0}

    def test_a_field_that_the_testbed_does_not_have_gives_nothing(self):
        assert shares_by(outcomes({"a": [1]}), "kind") == {}

    def test_choices_by_task(self):
        assert choices(outcomes({"x": [1, 0, 1], "y": [0]})) == {"x": {"a": 2, "": 1}, "y": {"": 1}}
