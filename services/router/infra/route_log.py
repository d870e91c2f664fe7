"""The route log: one JSON line for each generation that is sampled, for evaluation offline.

A text is told by its hash unless the operator asks for the words. Files are turned over by size, so that they never
take more than their number times that size.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from services.common.log import get_logger
from services.router.answer import RouteResult
from services.router.observation import GenerationRecord

_log = get_logger(__name__)

_MAX_TEXT_CHARS = 8192


class RouteLog:
    """Writes records, in a thread of its own.

    Args:
        file: the newest lines; older ones lie beside it as `<file>.1` and so on, the oldest last.
        sample_rate: share of the generations that are written.
        max_bytes: size at which a file is turned over.
        num_kept: older files that are kept.
        keeps_texts: whether the words themselves are written.
        chance: a number in [0, 1) for each generation.
    """

    def __init__(
        self,
        file: Path,
        *,
        sample_rate: float = 1.0,
        max_bytes: int = 64 << 20,
        num_kept: int = 4,
        keeps_texts: bool = False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._file = file
        self._sample_rate = sample_rate
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._keeps_texts = keeps_texts
        self._chance = chance
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="route-log")
        self._has_failed = False

    async def start(self) -> None:
        """Make the folder. Raises OSError if that cannot be."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8"):
            self._file.chmod(0o600)

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (a line takes no time)
        """Return when every line is written."""
        self._writer.shutdown(wait=True)

    def observe(self, record: GenerationRecord) -> None:
        """Write a record if chance picks it; returns at once."""
        if self._chance() < self._sample_rate:
            self._writer.submit(self._write, describe_record(record, keeps_text=self._keeps_texts))

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False) + "\n"
        data = line.encode(errors="backslashreplace")
        try:
            if self._file.exists() and self._file.stat().st_size + len(data) > self._max_bytes:
                self._turn_over()
            with self._file.open("ab") as stream:
                stream.write(data)
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:  # a full disk is said once, not once a request
                self._has_failed = True
                _log.warning("route_log_failed", file=str(self._file), reason=str(error))

    def _turn_over(self) -> None:
        def older(number: int) -> Path:
            return self._file.with_name(f"{self._file.name}.{number}") if number else self._file

        for number in range(self._num_kept - 1, -1, -1):
            if older(number).exists():
                older(number).replace(older(number + 1))
        if self._num_kept == 0:
            self._file.unlink()


def describe_record(record: GenerationRecord, *, keeps_text: bool) -> dict[str, Any]:
    """A record as a line holds it."""
    text = record.request.prompt.routing_text
    line: dict[str, Any] = {
        "time": round(record.started_at, 3),
        "request_id": record.request.request_id,
        "text_sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
        "num_chars": len(text),
        "model": record.request.options.model,
        "outcome": record.outcome,
        "error_code": record.error_code,
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_cached_tokens": record.num_cached_tokens,
        "num_completion_tokens": record.num_completion_tokens,
        "seconds": round(record.seconds, 6),
        "ttft_seconds": record.ttft_seconds,
        "inter_token_seconds": record.inter_token_seconds,
    }
    if keeps_text:
        line["text"] = text[:_MAX_TEXT_CHARS]
    if record.route is not None:
        line |= _describe_route(record.route)
    return line


def _describe_route(route: RouteResult) -> dict[str, Any]:
    decision, session = route.decision, route.session
    return {
        "mode": decision.mode.value,
        "strategy": route.strategy,
        "plan_id": route.plan_id,
        "session": None if session is None else session.after.session_id,
        "session_turn": None if session is None else session.after.turn,
        "session_verdict": None if session is None else session.verdict.value,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "catalog_generation": decision.plan.catalog_generation,
        "encoder_id": route.encoder_id,
        "encode_seconds": route.encode_seconds,
        "decide_seconds": route.decide_seconds,
        "plan_digest": decision.plan.digest,
        "plan": [
            {
                "adapter": budget.adapter_name,
                "adapter_id": budget.adapter_id,
                "num_rocs": budget.num_rocs,
                "weight": budget.weight,
                "reading_weight": budget.reading_weight,
            }
            for budget in decision.plan.budgets
        ],
        "candidates": [
            {
                "adapter": candidate.adapter_name,
                "posterior": candidate.posterior,
                "log_likelihood_ratio": candidate.log_likelihood_ratio,
                "num_rocs": candidate.num_rocs,
            }
            for candidate in decision.candidates
        ],
    }
