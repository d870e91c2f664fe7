"""How often a session's plan would end, by what the next turn says: for choosing the rules of `hilora.topic_watch`.

Every text is asked as a next turn of a session whose plan is one adapter. Turns of the same task should keep it, turns
of another task should end it, and turns that say nothing of a task should keep it. What was really meant is known for
the testbed's own lines; wordings that no sample has are made of them by chance: a part of the instruction's words is
dropped and the rest shuffled, so that the task is still named, badly.

Shapes: L adapters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.adapter import adapter_id_of
from hilora.fitted_pool import FittedPool
from hilora.gaussian_index import NOBODY
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora.topic_watch import TopicRules, watch_topic
from hilora_lab.evaluation.offline import Encodes
from hilora_lab.testbed.folder import Split, TaskLine, Testbed

_SEPARATOR = " : "
"""Between a line's instruction and what it is to be done to."""
_OTHERS_PER_TEXT = 5
_SHARES_DROPPED = (0.3, 0.5)

FOLLOW_UPS = (
    "and now this one",
    "thanks , again please",
    "yes",
    "another one",
    "can you do that again ?",
    "ok",
    "continue",
    "no , try once more",
    "next",
    "what about this : a b c",
    "please explain",
    "go on",
    "that is wrong",
    "the same for these",
    "why ?",
)
"""Turns that only a conversation gives a meaning."""

STRANGE_TEXTS = (
    "write a long poem about the sea in winter",
    "what is the capital of france",
    "translate this sentence into german",
    "solve the equation x squared equals two",
    "recommend a good restaurant in rome",
    "summarise the news of today",
    "how do i fix a flat tyre",
    "write a python function that sorts a list",
)
"""Turns of topics that no adapter of the testbed was made for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicRate:
    """How often plans would end with one kind of turn."""

    kind: str
    same_task: float | None
    """Where the plan is the task's own adapter; None for turns of no task."""
    other_task: float
    """Where it is another's."""
    nearest_is_own: float | None
    """How often the likeliest adapter is the task's own: what choosing without a session comes to."""


class TopicBench:
    """A testbed's pool, fitted once, and its turns, embedded once.

    Args:
        testbed: the folder.
        encoder: what turns texts into points.
        split: which lines are asked.
        limit_per_task: at most that many of each task.
        seed: of the words that are dropped and the plans that are paired with a turn.
    """

    def __init__(
        self,
        testbed: Testbed,
        encoder: Encodes,
        *,
        split: Split = "dev",
        limit_per_task: int | None = None,
        seed: int = 0,
    ) -> None:
        names = testbed.adapter_names
        router = SequenceRouter(
            [
                AdapterProfile(
                    adapter_id=adapter_id_of(name, "offline"),
                    adapter_name=name,
                    lora_rank=1,
                    samples_ME=encoder.encode([line.prompt for line in testbed.lines_of(name, "fit")]),
                )
                for name in names
            ],
            catalog_generation=0,
        )
        assert router.pool is not None, "a testbed has adapters"
        self._pool: FittedPool = router.pool
        self._place_of = {profile.adapter_name: place for place, profile in enumerate(self._pool.profiles)}
        self._rng = random.Random(seed)
        lines = [line for name in names for line in testbed.lines_of(name, split)[:limit_per_task]]
        self._turns: dict[str, list[tuple[NDArray[np.float32], int | None]]] = {}
        self._add(encoder, "the task's own wording", [line.prompt for line in lines], lines)
        for share in _SHARES_DROPPED:
            kind = f"{share:.0%} of its words dropped, shuffled"
            self._add(encoder, kind, [self._worded_badly(line.prompt, share) for line in lines], lines)
        bare = [line.prompt.partition(_SEPARATOR)[2] or line.prompt for line in lines]
        self._add(encoder, "what it is done to, alone", bare, lines)
        unseen = [
            line.prompt for name in testbed.unseen_task_names for line in testbed.lines_of(name, split)[:limit_per_task]
        ]
        self._add(encoder, "tasks without an adapter", unseen, None)
        self._add(encoder, "follow-ups", FOLLOW_UPS, None)
        self._add(encoder, "other topics altogether", STRANGE_TEXTS, None)

    def rates(self, rules: TopicRules) -> list[TopicRate]:
        """One row a kind of turn."""
        return [self._rate(kind, turns, rules) for kind, turns in self._turns.items() if turns]

    def _rate(self, kind: str, turns: Sequence[tuple[NDArray[np.float32], int | None]], rules: TopicRules) -> TopicRate:
        same: list[bool] = []
        other: list[bool] = []
        nearest: list[bool] = []
        places = range(len(self._pool.profiles))
        # The same pairs under every rule.
        rng = random.Random(kind)
        for z_E, own in turns:
            if own is None:
                other += [self._ends(z_E, place, rules) for place in places]
                continue
            same.append(self._ends(z_E, own, rules))
            nearest.append(
                int(self._pool.score_nearest(self._pool.checked(z_E), num_results=1, excluded=NOBODY).idx_C[0]) == own
            )
            others = [place for place in places if place != own]
            other += [self._ends(z_E, place, rules) for place in rng.sample(others, min(_OTHERS_PER_TEXT, len(others)))]
        return TopicRate(
            kind=kind,
            same_task=float(np.mean(same)) if same else None,
            other_task=float(np.mean(other)),
            nearest_is_own=float(np.mean(nearest)) if nearest else None,
        )

    def _ends(self, z_E: NDArray[np.float32], place: int, rules: TopicRules) -> bool:
        kept_places = np.array([place], dtype=np.intp)
        return watch_topic(self._pool, z_E, kept_places=kept_places, excluded=NOBODY, rules=rules).has_moved

    def _add(self, encoder: Encodes, kind: str, texts: Sequence[str], lines: Sequence[TaskLine] | None) -> None:
        points = encoder.encode(list(texts)) if texts else np.zeros((0, 0), dtype=np.float32)
        owners = [self._place_of[line.task] for line in lines] if lines is not None else [None] * len(texts)
        self._turns[kind] = list(zip(points, owners, strict=True))

    def _worded_badly(self, prompt: str, share: float) -> str:
        instruction, separator, rest = prompt.partition(_SEPARATOR)
        words = instruction.split()
        kept = [word for word in words if self._rng.random() >= share] or words[:1]
        self._rng.shuffle(kept)
        return " ".join(kept) + separator + rest
