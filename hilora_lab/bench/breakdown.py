"""Where the time of a decode step goes: the standard profiler's own times, added up by part of the engine.

Profiling makes Python code slower than it is, so parts that are many small calls look larger; products do not.
"""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from typing import cast

from hilora_lab.bench.session import BenchSession

_NUM_STEPS = 8
_LINEAR = "linear layers"
_ROCS = "components"
_ATTENTION = "attention"
_REST = "rest of the model"
_SAMPLING = "sampling and text"
_LOOP = "scheduling and batches"
PARTS = (_LINEAR, _ATTENTION, _REST, _ROCS, _SAMPLING, _LOOP)
"""From what a base model spends to what the engine adds."""

_Function = tuple[str, int, str]
"""File, line and name, as the profiler has them; `~` and 0 for a function without Python code."""
_Row = tuple[int, int, float, float, dict[_Function, tuple[int, int, float, float]]]
"""Calls, calls that are no recursion, own seconds, seconds with what it called, and the same by caller."""

_PART_BY_PATH = (
    ("services/worker/kernels/fast_linear", _LINEAR),
    ("services/worker/models/", _ATTENTION),
    ("services/worker/lora/", _ROCS),
    ("services/worker/kernels/", _ROCS),
    ("services/worker/engine/sampling/", _SAMPLING),
    ("services/worker/engine/output/", _SAMPLING),
    ("tokenization", _SAMPLING),
    ("services/worker/", _LOOP),
    ("hilora_lab/bench/", _LOOP),
)
_PART_BY_NAME = (
    ("linear", _LINEAR),
    ("_native.Table", _ROCS),
    ("scaled_dot_product_attention", _ATTENTION),
    ("decode_attention", _ATTENTION),
)


def measure_breakdown(session: BenchSession, *, batch_size: int, has_plans: bool) -> dict[str, float]:
    """Milliseconds of one decode step by part, in the order of `PARTS`."""
    profile = cProfile.Profile()
    with closing(session.drive(max_num_seqs=batch_size)) as drive:
        requests = session.requests(session.prompts(batch_size), has_plans=has_plans)
        drive.start(requests, new_tokens=session.sizes.new_tokens)
        for _ in range(_NUM_STEPS):
            profile.enable()
            drive.step()
            profile.disable()
        drive.abort_all()
    rows = cast("Mapping[_Function, _Row]", vars(pstats.Stats(profile))["stats"])
    return {part: round(1e3 * seconds / _NUM_STEPS, 3) for part, seconds in seconds_by_part(rows).items()}


def seconds_by_part(rows: Mapping[_Function, _Row]) -> dict[str, float]:
    """Own seconds of all functions, each under its part; a function without Python code counts for its callers."""
    found: defaultdict[str, float] = defaultdict(float)
    for function, (_, _, own_seconds, _, callers) in rows.items():
        part = _part_of(function)
        if part is not None or not callers:
            found[part or _REST] += own_seconds
            continue
        for caller, (_, _, seconds, _) in callers.items():
            found[_part_of(caller) or _REST] += seconds
    return {part: found[part] for part in PARTS}


def _part_of(function: _Function) -> str | None:
    """The part a function belongs to; None if that depends on who calls it."""
    path, _, name = function
    for text, part in _PART_BY_NAME:
        if text in name:
            return part
    for text, part in _PART_BY_PATH:
        if text in path:
            return part
    return None if path == "~" else _REST
