"""HiLoRA against the base on one engine, and an engine that could serve ROCs against one that could not.

Decode steps are measured by themselves. The prefix cache keeps the prompts' keys and values of both variants, so that
a turn does not pay for its prompts again; what the cache does falls into steps that do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import Any

from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.figure import Measured
from hilora_lab.bench.pairing import ratios, summarise
from hilora_lab.bench.session import BenchSession

_PREFILL_BATCH = 8
_IDLE_BATCH = 8
_IDLE_ROUNDS_FACTOR = 2
"""A difference of a percent needs more rounds to be seen."""
_SLOTS_PER_ROW = 6
"""A request copies the prefix it shares: each variant's prompts take up twice their slots, and none may be evicted."""


def measure_decode(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`hilora_vs_base_decode_b*`: the middle decode step of a turn, HiLoRA's speed over the base's."""
    batches = [size for size in (1, 8, 32) if f"hilora_vs_base_decode_b{size}" in wanted]
    found = Measured()
    if not batches:
        return found
    with closing(session.drive(max_num_seqs=_SLOTS_PER_ROW * max(batches), enable_prefix_cache=True)) as drive:
        for size in batches:
            variants = {
                "base": _decode_turn(session, drive, size, has_plans=False),
                "hilora": _decode_turn(session, drive, size, has_plans=True),
            }
            seconds = session.take_turns(f"decode, batch {size}", variants)
            key = f"hilora_vs_base_decode_b{size}"
            found.ratios[key] = summarise(ratios(seconds["base"], seconds["hilora"]))
            for name, values in seconds.items():
                found.extras[f"decode_step_ms_{name}_b{size}"] = _milliseconds(values)
    return found


def measure_prefill(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`hilora_vs_base_prefill`: new prompts, one token each, until all have it."""
    found = Measured()
    if "hilora_vs_base_prefill" not in wanted:
        return found
    with closing(session.drive()) as drive:

        def turn(*, has_plans: bool) -> Callable[[int], float]:
            return lambda round_idx: (
                drive.complete(
                    session.requests(session.prompts(_PREFILL_BATCH, round_idx=round_idx), has_plans=has_plans),
                    new_tokens=1,
                ).total_seconds
            )

        seconds = session.take_turns("prefill", {"base": turn(has_plans=False), "hilora": turn(has_plans=True)})
    found.ratios["hilora_vs_base_prefill"] = summarise(ratios(seconds["base"], seconds["hilora"]))
    for name, values in seconds.items():
        found.extras[f"prefill_ms_{name}"] = _milliseconds(values)
    return found


def measure_idle(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`idle_lora_vs_no_lora`: decode of base requests on an engine with gated layers, over one without."""
    found = Measured()
    if "idle_lora_vs_no_lora" not in wanted:
        return found
    options: dict[str, Any] = {"max_num_seqs": _SLOTS_PER_ROW * _IDLE_BATCH, "enable_prefix_cache": True}
    with closing(session.drive(**options)) as gated, closing(session.drive(enable_lora=False, **options)) as bare:
        variants = {
            "no_lora": _decode_turn(session, bare, _IDLE_BATCH, has_plans=False),
            "idle_lora": _decode_turn(session, gated, _IDLE_BATCH, has_plans=False),
        }
        num_rounds = _IDLE_ROUNDS_FACTOR * session.sizes.num_rounds
        seconds = session.take_turns("engine with and without LoRA", variants, num_rounds=num_rounds)
    found.ratios["idle_lora_vs_no_lora"] = summarise(ratios(seconds["no_lora"], seconds["idle_lora"]))
    for name, values in seconds.items():
        found.extras[f"decode_step_ms_{name}_b{_IDLE_BATCH}"] = _milliseconds(values)
    return found


def _decode_turn(session: BenchSession, drive: EngineDrive, size: int, *, has_plans: bool) -> Callable[[int], float]:
    requests: Sequence[BenchRequest] = session.requests(session.prompts(size), has_plans=has_plans)
    return lambda _: drive.complete(requests, new_tokens=session.sizes.decode_tokens).decode_seconds


def _milliseconds(seconds: Sequence[float]) -> dict[str, float | int]:
    return summarise([1e3 * value for value in seconds]).as_json()
