"""One model under measurement: its weights, its workload, and engines over both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hilora.routing_plan import RoutingPlan
from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.figure import Progress
from hilora_lab.bench.model_shape import build_base, find_shape, twin_of
from hilora_lab.bench.pairing import T, take_turns
from hilora_lab.bench.workload import (
    ALL_LINEARS,
    Features,
    Workload,
    adapter_bytes,
    build_workload,
    features_of,
    random_prompts,
)
from services.worker.engine.config import EngineConfig
from services.worker.models.loader import LoadedModel
from services.worker.ports import ComponentSource


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSizes:
    """How much is measured."""

    num_rounds: int = 5
    """Rounds that count, and so ratios of each figure."""
    prompt_len: int = 128
    new_tokens: int = 32
    decode_tokens: int = 32
    """New tokens where only decode steps are measured."""
    chunk_tokens: int = 1024
    """Tokens of one step at most."""
    long_prompt_len: int = 768
    long_new_tokens: int = 32
    pool_counts: tuple[int, ...] = (20, 200, 2000)
    """Adapters in the pool, ascending; the device holds a twentieth of the last."""
    pool_requests: int = 24
    pool_prompt_len: int = 32
    cold_streams: int = 8
    cold_steps: int = 200
    """Decode steps of a round under load."""
    cold_interval: int = 10
    """Steps between two arrivals."""
    cold_prompt_len: int = 32


_SHORT_PROMPT = (3, 4, 5)
_WARMUP_PROMPTS = 1
_WARMUP_TOKENS = 2

TINY_SIZES = BenchSizes(
    num_rounds=5,
    prompt_len=12,
    new_tokens=12,
    decode_tokens=4,
    chunk_tokens=256,
    long_prompt_len=24,
    long_new_tokens=3,
    pool_counts=(6, 20, 80),
    pool_requests=4,
    pool_prompt_len=8,
    cold_streams=2,
    cold_steps=10,
    cold_interval=4,
    cold_prompt_len=8,
)
"""For models that cost nothing: whether everything runs, not how fast."""


class BenchSession:
    """A model and its workload.

    Args:
        model: name of the shape.
        sizes: how much is measured.
        seed: of weights, adapters, plans and prompts.
        on_progress: told about each round.
    """

    def __init__(self, *, model: str, sizes: BenchSizes, seed: int, on_progress: Progress) -> None:
        self.sizes = sizes
        self.seed = seed
        self.base: LoadedModel = build_base(find_shape(model), seed=seed)
        self.workload: Workload = build_workload(self.base.model, seed=seed)
        self._on_progress = on_progress

    def drive(self, *, source: ComponentSource | None = None, **config: Any) -> EngineDrive:
        """An engine over the shared weights, with room for the whole workload unless told otherwise. What the workload
        needs is resident before anything is measured."""
        settings: dict[str, Any] = {
            "max_num_seqs": 32,
            "max_model_len": self.sizes.prompt_len + max(self.sizes.new_tokens, self.sizes.decode_tokens),
            "max_num_batched_tokens": self.sizes.chunk_tokens,
            "roc_pool_bytes": 2 * len(self.workload.adapters) * adapter_bytes(self.features()),
            **config,
        }
        engine_config = EngineConfig(**settings)
        drive = EngineDrive(loaded=twin_of(self.base), source=source or self.workload, config=engine_config)
        if source is None and engine_config.enable_lora:
            drive.complete(self.requests([_SHORT_PROMPT] * len(self.workload.plans), has_plans=True), new_tokens=1)
        return drive

    def features(self, names: Sequence[str] = ALL_LINEARS) -> Features:
        """The layers of those names."""
        return features_of(self.base.model, names)

    def prompts(self, num_prompts: int, *, length: int | None = None, round_idx: int = 0) -> list[tuple[int, ...]]:
        """Prompts that depend on the seed and the round."""
        return random_prompts(
            num_prompts,
            length=length or self.sizes.prompt_len,
            vocab_size=self.base.vocab_size,
            seed=1_000_003 * (self.seed + 1) + round_idx,
        )

    def requests(
        self, prompts: Sequence[tuple[int, ...]], *, has_plans: bool, first_plan: int = 0
    ) -> list[BenchRequest]:
        """The prompts as requests, each with a plan of its own or all for the base alone."""
        plans = self.workload.plans
        return [
            BenchRequest(prompt=prompt, plan=plans[(first_plan + idx) % len(plans)] if has_plans else RoutingPlan())
            for idx, prompt in enumerate(prompts)
        ]

    def size_of_round(self, round_idx: int, *, num_prompts: int, new_tokens: int) -> tuple[int, int]:
        """Prompts and new tokens of a round from end to end: all of them, or next to nothing to warm up."""
        return (num_prompts, new_tokens) if round_idx >= 0 else (_WARMUP_PROMPTS, _WARMUP_TOKENS)

    def take_turns(
        self, title: str, variants: Mapping[str, Callable[[int], T]], *, num_rounds: int | None = None
    ) -> dict[str, list[T]]:
        """`pairing.take_turns` with one round to warm up, and progress."""
        num_rounds = num_rounds or self.sizes.num_rounds
        self._on_progress(title, 0, num_rounds)
        return take_turns(
            variants,
            num_rounds=num_rounds,
            on_round=lambda round_idx: self._on_progress(title, round_idx + 1, num_rounds),
        )
