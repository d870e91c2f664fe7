"""Routing and exact match on a testbed without a running system: embed, decide, answer.

The same settings that a served evaluation has: `id` (own adapter in the pool), `ood` (own adapter excluded), `unseen`
(tasks without an adapter). The embeddings do not depend on routing settings, so many settings share one `OfflineBench`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hilora.adapter import adapter_id_of
from hilora.character_grams import SampleGrams, gram_ids
from hilora.routing_plan import RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from hilora_lab.testbed.batches import tokenize_example
from hilora_lab.testbed.folder import Split, TaskLine, Testbed
from hilora_lab.testbed.tasks import Example

OfflineSetting = Literal["id", "ood", "unseen"]


class Encodes(Protocol):
    """A sentence encoder."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[N, E]`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineScore:
    """What one routing configuration scores in one setting."""

    num_prompts: int
    exact_match: float
    family_first: float
    """Share of prompts whose first candidate is an adapter of the right family."""
    own_first: float
    """Share of prompts whose first candidate is the task's own adapter."""
    mean_candidates: float
    mean_rocs: float


class OfflineBench:
    """A testbed, loaded and embedded once.

    Args:
        testbed: the folder.
        encoder: what turns prompts into points.
        split: which lines are asked.
        limit_per_task: at most that many of each task.
    """

    def __init__(
        self, testbed: Testbed, encoder: Encodes, *, split: Split = "dev", limit_per_task: int | None = None
    ) -> None:
        adapters = {name: read_adapter_folder(testbed.adapter_folder(name)) for name in testbed.adapter_names}
        self._tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(testbed.base_folder))
        self._model = GatedModel(AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval(), adapters)
        self._family_of = {line.task: line.family for line in testbed.lines}
        self._router = SequenceRouter(
            [
                AdapterProfile(
                    adapter_id=adapter_id_of(name, "offline"),
                    adapter_name=name,
                    lora_rank=adapters[name].lora_rank,
                    samples_ME=encoder.encode([line.prompt for line in testbed.lines_of(name, "fit")]),
                    grams=SampleGrams.of([line.prompt for line in testbed.lines_of(name, "fit")]),
                )
                for name in testbed.adapter_names
            ],
            catalog_generation=0,
        )
        self._questions: dict[OfflineSetting, list[TaskLine]] = {
            "id": _lines(testbed, testbed.adapter_names, split, limit_per_task),
            "unseen": _lines(testbed, testbed.unseen_task_names, split, limit_per_task),
        }
        self._questions["ood"] = self._questions["id"]
        asked = [line.prompt for line in [*self._questions["id"], *self._questions["unseen"]]]
        self._embedding_of: Mapping[str, NDArray[np.float32]] = dict(zip(asked, encoder.encode(asked), strict=True))

    def decide(self, line: TaskLine, setting: OfflineSetting, settings: RoutingSettings) -> RoutingDecision:
        """The routing decision for one line."""
        exclude = frozenset({line.task}) if setting == "ood" else frozenset[str]()
        return self._router.decide(
            self._embedding_of[line.prompt],
            settings=settings,
            exclude=exclude,
            grams=gram_ids(line.prompt),
            text=line.prompt,
        )

    def score(self, setting: OfflineSetting, settings: RoutingSettings) -> OfflineScore:
        """Route and answer every line of a setting."""
        lines = self._questions[setting]
        num_right = num_family = num_own = num_candidates = num_rocs = 0
        for line in lines:
            plan = self.decide(line, setting, settings).plan
            first = max(plan.budgets, key=lambda budget: budget.weight).adapter_name
            example = tokenize_example(self._tokenizer, Example(prompt=line.prompt, answer=line.answer))
            num_right += self._model.is_answered(plan, example)
            num_family += self._family_of[first] == line.family
            num_own += first == line.task
            num_candidates += len(plan.budgets)
            num_rocs += plan.num_rocs
        total = len(lines)
        return OfflineScore(
            num_prompts=total,
            exact_match=num_right / total,
            family_first=num_family / total,
            own_first=num_own / total,
            mean_candidates=num_candidates / total,
            mean_rocs=num_rocs / total,
        )


def _lines(testbed: Testbed, tasks: Sequence[str], split: Split, limit_per_task: int | None) -> list[TaskLine]:
    return [line for task in tasks for line in testbed.lines_of(task, split)[:limit_per_task]]
