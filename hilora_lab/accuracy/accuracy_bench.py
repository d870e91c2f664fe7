"""Asks strategies every question of a testbed: the product's routing, the worker's engine, one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import AutoTokenizer

from hilora.adapter import LoRAAdapter, adapter_id_of
from hilora.character_grams import SampleGrams
from hilora.routing_explanation import base_decision, explicit_decision
from hilora.routing_plan import RoutingDecision
from hilora.sequence_routing import AdapterProfile
from hilora_lab.accuracy.asked import AccuracySetting, AskedLines, ask
from hilora_lab.accuracy.engine_scorer import EngineScorer, FactorSource, PlannedExample
from hilora_lab.accuracy.outcomes import Outcomes
from hilora_lab.accuracy.planner import NOTHING_LEARNED, Learned, Planner
from hilora_lab.accuracy.pool_flags import chosen_among, flags_of
from hilora_lab.accuracy.variants import parse_variant
from hilora_lab.evaluation.gated_model import read_adapter_folder
from hilora_lab.evaluation.offline import Encodes
from hilora_lab.testbed.batches import TokenizedExample
from hilora_lab.testbed.folder import Split, TaskLine, Testbed

ORACLE, BASE = "oracle", "base"
REVISION = "offline"
"""Of every adapter of a testbed: the one that `hilora train gate` makes gates for."""
_OTHER_SPLIT: Mapping[Split, Split] = {"test": "dev", "dev": "test", "fit": "dev"}
_CHOOSING_LINES = 8
"""Lines a task by which the best single adapter of the others is chosen."""

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


def _in_silence(_what: str, _done: int, _total: int) -> None:
    """The default: nobody watches."""


def profile_of(name: str, adapter: LoRAAdapter, texts: Sequence[str], encoder: Encodes) -> AdapterProfile:
    """What a router knows of an adapter that came with these sample texts."""
    return AdapterProfile(
        adapter_id=adapter_id_of(name, REVISION),
        adapter_name=name,
        lora_rank=adapter.lora_rank,
        samples_ME=encoder.encode(list(texts)),
        grams=SampleGrams.of(texts),
    )


def tokenize_line(tokenizer: Any, line: TaskLine) -> TokenizedExample:
    """Ids of a prompt and of its answer, its end included, with any tokenizer."""
    answer = tokenizer(line.answer, add_special_tokens=False)["input_ids"]
    return TokenizedExample(
        prompt_ids=tuple(tokenizer(line.prompt)["input_ids"]), answer_ids=(*answer, tokenizer.eos_token_id)
    )


class AccuracyBench:
    """A testbed, loaded and embedded once.

    Args:
        testbed: the folder.
        encoder: what turns texts into points.
        split: which lines are asked.
        limit_per_task: at most that many of each task.
        seed: of draws by chance.
        device: where the engine runs.
        learned: what strategies learned.
        holds_back: whether adapters that the product's checks flag stay out of the pool, as they do by default there.
        on_progress: told about what takes time.
    """

    def __init__(
        self,
        testbed: Testbed,
        encoder: Encodes,
        *,
        split: Split = "test",
        limit_per_task: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        learned: Learned = NOTHING_LEARNED,
        holds_back: bool = False,
        on_progress: OnProgress = _in_silence,
    ) -> None:
        self.testbed = testbed
        self.encoder = encoder
        self.split: Split = split
        self.limit_per_task = limit_per_task
        self.seed = seed
        self.adapters = {name: read_adapter_folder(testbed.adapter_folder(name)) for name in testbed.adapter_names}
        self.sample_texts = {
            name: [line.prompt for line in testbed.lines_of(name, "fit")] for name in testbed.adapter_names
        }
        on_progress("embed", 0, 1)
        self.asked: AskedLines = ask(testbed, encoder, split=split, limit_per_task=limit_per_task)
        profiles = self.profiles()
        flags = flags_of(profiles, self.adapters) if holds_back else dict.fromkeys(profiles, ())
        chosen = chosen_among(profiles, flags)
        self.held_back = {name: flags[name] for name in profiles if name not in chosen}
        """Why adapters are out of the pool, by name."""
        self.planner = Planner(chosen, seed=seed, learned=learned)
        on_progress("embed", 1, 1)
        self._on_progress = on_progress
        self.source = FactorSource({adapter_id_of(name, REVISION): adapter for name, adapter in self.adapters.items()})
        self._tokenizer: Any = AutoTokenizer.from_pretrained(testbed.base_folder)
        longest = max(
            len(example.prompt_ids) + len(example.answer_ids)
            for example in (tokenize_line(self._tokenizer, line) for line in testbed.lines)
        )
        self._scorer = EngineScorer(
            testbed.base_folder, self.source, longest=longest, device=device, gates_folder=learned.gates_folder
        )
        self._tokenized: dict[str, TokenizedExample] = {}
        self._best_other: dict[str, str] | None = None

    def close(self) -> None:
        """End the engine."""
        self._scorer.close()

    def profiles(self) -> dict[str, AdapterProfile]:
        """The pool by name, as its sample texts describe it."""
        return {
            name: profile_of(name, self.adapters[name], self.sample_texts[name], self.encoder) for name in self.adapters
        }

    def outcomes(
        self,
        strategy: str,
        setting: AccuracySetting,
        *,
        planner: Planner | None = None,
        changes: Mapping[str, object] | None = None,
        asked: AskedLines | None = None,
    ) -> Outcomes:
        """Ask a strategy every line of a setting.

        Args:
            strategy: a strategy's name, with departures (`parse_variant`) or without, `base`, or `oracle`: the task's
                own adapter where it may be used, elsewhere the single other one that is best on the lines of another
                split.
            setting: see `asked`.
            planner: another pool than the testbed's.
            changes: fields of the strategy's settings to depart in.
            asked: the lines as another encoder sees them.
        """
        asked = asked or self.asked
        lines = asked.by_setting[setting]
        label = f"{strategy} {setting}"
        decisions: list[RoutingDecision] = []
        seconds: list[float] = []
        for idx, line in enumerate(lines):
            # A router is fitted when it is first asked for, which is not part of a decision's time.
            without = line.task if setting == "ood" else None
            if strategy not in {ORACLE, BASE}:
                (planner or self.planner).router(without)
            started = time.perf_counter()
            decisions.append(self._decide(line, strategy, setting, asked, planner or self.planner, changes))
            seconds.append(time.perf_counter() - started)
            self._on_progress(f"route {label}", idx + 1, len(lines))
        planned = [
            PlannedExample(plan=decision.plan, example=self.tokenized(line))
            for decision, line in zip(decisions, lines, strict=True)
        ]
        started = time.perf_counter()
        is_right = self._scorer.answered(planned, lambda done: self._on_progress(f"answer {label}", done, len(planned)))
        return Outcomes(
            lines=lines,
            is_right=tuple(is_right),
            chosen=tuple(_first(decision) for decision in decisions),
            num_candidates=tuple(len(decision.plan.budgets) for decision in decisions),
            num_rocs=tuple(decision.plan.num_rocs for decision in decisions),
            is_unexplained=tuple(decision.is_out_of_distribution for decision in decisions),
            decide_seconds=tuple(seconds),
            forward_seconds=time.perf_counter() - started,
        )

    def tokenized(self, line: TaskLine) -> TokenizedExample:
        """Ids of a line's prompt and answer."""
        if line.prompt not in self._tokenized:
            self._tokenized[line.prompt] = tokenize_line(self._tokenizer, line)
        return self._tokenized[line.prompt]

    def best_other(self) -> dict[str, str]:
        """For every task the adapter that answers it best, its own left out; chosen on lines that are not asked."""
        if self._best_other is None:
            self._best_other = self._find_best_other()
        return self._best_other

    def _find_best_other(self) -> dict[str, str]:
        choosing = _OTHER_SPLIT[self.split]
        found: dict[str, str] = {}
        tasks = list(dict.fromkeys(line.task for line in self.asked.all_lines))
        for idx, task in enumerate(tasks):
            lines = self.testbed.lines_of(task, choosing)[:_CHOOSING_LINES]
            others = [name for name in self.adapters if name != task]
            planned = [
                PlannedExample(plan=self._pinned(name).plan, example=self.tokenized(line))
                for name in others
                for line in lines
            ]
            right = self._scorer.answered(planned)
            counts = {name: sum(right[at * len(lines) : (at + 1) * len(lines)]) for at, name in enumerate(others)}
            found[task] = max(others, key=lambda name: counts[name])
            self._on_progress("best single adapter", idx + 1, len(tasks))
        return found

    def _decide(
        self,
        line: TaskLine,
        strategy: str,
        setting: AccuracySetting,
        asked: AskedLines,
        planner: Planner,
        changes: Mapping[str, object] | None,
    ) -> RoutingDecision:
        if strategy == BASE:
            return base_decision(catalog_generation=0)
        if strategy == ORACLE:
            has_own = setting in {"id", "new_wording"}
            return self._pinned(line.task if has_own else self.best_other()[line.task])
        name, departures = parse_variant(strategy)
        return planner.decide(
            line.prompt,
            asked.embedding_of[line.prompt],
            name,
            task=line.task,
            without=line.task if setting == "ood" else None,
            changes={**departures, **(changes or {})},
        )

    def _pinned(self, name: str) -> RoutingDecision:
        return explicit_decision(
            adapter_id=adapter_id_of(name, REVISION),
            adapter_name=name,
            lora_rank=self.adapters[name].lora_rank,
            catalog_generation=0,
        )


def settings_of(asked: AskedLines) -> tuple[AccuracySetting, ...]:
    """The settings that a testbed has lines for, in their order."""
    return tuple(asked.by_setting)


def _first(decision: RoutingDecision) -> str:
    budgets = decision.plan.budgets
    return max(budgets, key=lambda budget: budget.weight).adapter_name if budgets else ""
