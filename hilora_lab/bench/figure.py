"""The figures of the engine benchmark: what each compares, and what it should reach.

The keys are a contract: they stand under `ratios` in the report, each with `{median, min, max, n}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hilora_lab.bench.pairing import Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One ratio."""

    key: str
    title: str
    """What is divided by what."""
    goal: float
    is_upper_limit: bool = False
    """Whether the goal is not to be exceeded; otherwise it is to be reached."""

    def is_met(self, value: float) -> bool:
        """Whether a value is within the goal."""
        return value <= self.goal if self.is_upper_limit else value >= self.goal

    @property
    def goal_text(self) -> str:
        """The goal for people."""
        return f"{'<=' if self.is_upper_limit else '>='} {self.goal:g}"


_FIGURES = (
    Figure(key="hilora_vs_base_decode_b1", title="decode, HiLoRA / base, batch 1", goal=0.80),
    Figure(key="hilora_vs_base_decode_b8", title="decode, HiLoRA / base, batch 8", goal=0.85),
    Figure(key="hilora_vs_base_decode_b32", title="decode, HiLoRA / base, batch 32", goal=0.92),
    Figure(key="hilora_vs_base_prefill", title="prefill, HiLoRA / base", goal=0.90),
    Figure(key="idle_lora_vs_no_lora", title="base requests, engine with LoRA / without", goal=0.985),
    Figure(key="vs_peft_mixed_batch", title="HiLoRA / PEFT mixed batch, batch 8", goal=1.5),
    Figure(key="vs_peft_arrow", title="HiLoRA / PEFT Arrow over 20 adapters, batch 8", goal=4.0),
    Figure(key="vs_generate_b8", title="HiLoRA / generate of the base, batch 8", goal=1.0),
    Figure(key="vs_generate_b32", title="HiLoRA / generate of the base, batch 32", goal=1.0),
    Figure(
        key="vs_transformers_cb_768", title="decode, HiLoRA / transformers continuous batching, 768 tokens", goal=5.0
    ),
    Figure(key="pool_2000_vs_20", title="throughput, 2,000 adapters / 20", goal=0.90),
    Figure(key="cold_adapter_p99_itl", title="p99 between tokens, cold / warm arrivals", goal=1.3, is_upper_limit=True),
)
FIGURES: Mapping[str, Figure] = {figure.key: figure for figure in _FIGURES}


@dataclass(kw_only=True, slots=True)
class Measured:
    """What a group of figures found."""

    ratios: dict[str, Summary] = field(default_factory=dict[str, Summary])
    """By figure key."""
    extras: dict[str, dict[str, float | int]] = field(default_factory=dict[str, dict[str, float | int]])
    """Absolute values behind the ratios and figures beside the contract, by name."""

    def add(self, other: Measured) -> None:
        """Take another group's in."""
        self.ratios.update(other.ratios)
        self.extras.update(other.extras)


Progress = Callable[[str, int, int], None]
"""Told what is measured, rounds done, and rounds in all."""
