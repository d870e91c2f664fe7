"""Exact match under routing plans through the worker's own engine: different plans in one batch, one pass a prompt.

A prompt and its gold answer are read together, and the engine says of every token what it would have said in its place.
Greedy decoding gives exactly the gold answer if and only if each answer token is the likeliest at its position. A model
with an encoder reads only prompts that way, so it writes its answers, and their texts are compared.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hilora.adapter import DecomposedAdapter, LoRAAdapter, RocBasis
from hilora.decomposition import decompose
from hilora.errors import HiloraError, UnknownAdapter
from hilora.routing_plan import RoutingPlan
from hilora_lab.testbed.batches import TokenizedExample
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Failed, Finished, TextDelta
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.infra.gate_files import GateFiles
from services.worker.infra.merged_components import MergedComponents
from services.worker.models.loader import load_model
from services.worker.preparation import PlanPreparer

_BATCH = 64
_AT_ONCE = 2 * _BATCH
"""Requests that the engine knows of: one batch runs, one waits."""
_MERGED_BYTES = 256 << 20
_STEP_TOKENS = 4096
_POOL_BYTES = 2 << 30
_SPARE_TOKENS = 4
"""Allowed beyond the gold answer, so that one that does not stop is seen as wrong."""

OnAnswered = Callable[[int], None]
"""Called with the number of prompts sent so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedExample:
    """A prompt with its gold answer, and the plan under which it is answered."""

    plan: RoutingPlan
    example: TokenizedExample


class FactorSource:
    """A pool in main memory as the worker's `ComponentSource`; each basis is computed once.

    Args:
        adapters: by adapter id; may be added to while the engine runs.
    """

    def __init__(self, adapters: Mapping[str, LoRAAdapter]) -> None:
        self.adapters = dict(adapters)
        self._decomposed: dict[tuple[str, RocBasis], DecomposedAdapter] = {}

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource.fetch`.

        Raises:
            UnknownAdapter: no such adapter.
        """
        key = (adapter_id, basis)
        found = self._decomposed.get(key)
        if found is None:
            if adapter_id not in self.adapters:
                raise UnknownAdapter(f"The pool has no adapter {adapter_id}.", place=adapter_id)
            found = self._decomposed[key] = decompose(self.adapters[adapter_id], basis=basis)
        return found


class EngineScorer:
    """An engine over a base model.

    Args:
        base_folder: the base model and its tokenizer.
        source: the pool.
        longest: tokens of the longest prompt with its answer.
        device: torch device.
        gates_folder: where learned gates are, if there are any.
    """

    def __init__(
        self,
        base_folder: Path,
        source: FactorSource,
        *,
        longest: int,
        device: str = "cpu",
        gates_folder: Path | None = None,
    ) -> None:
        loaded = load_model(str(base_folder), device=device)
        self.source = source
        self.tokenizer = loaded.tokenizer
        self._writes = loaded.is_encoder_decoder
        merged = MergedComponents(source, capacity_bytes=_MERGED_BYTES)
        self._engine = Engine(
            loaded=loaded,
            source=merged,
            gate_source=None if gates_folder is None else GateFiles(gates_folder),
            config=EngineConfig(
                max_num_seqs=_BATCH,
                max_model_len=longest + 1,
                max_num_batched_tokens=max(_STEP_TOKENS, longest),
                max_waiting=4 * _BATCH,
                roc_pool_bytes=_POOL_BYTES,
            ),
        )
        self._preparer = PlanPreparer(engine=self._engine, merger=merged)
        self._runner = asyncio.Runner()
        self._engine.start()
        self._ids = itertools.count()
        self._right: dict[str, bool] = {}
        self._texts: dict[str, str] = {}
        self._free = threading.Semaphore(_AT_ONCE)
        self._error: HiloraError | None = None

    def answered(self, planned: Sequence[PlannedExample], on_answered: OnAnswered | None = None) -> list[bool]:
        """For each example whether greedy decoding under its plan gives exactly its answer.

        Raises:
            HiloraError: the first failure; a table of failures measures nothing.
        """
        ids: list[str] = []
        try:
            for one in planned:
                self._free.acquire()
                if self._error is not None:
                    self._free.release()
                    break
                ids.append(self._submit(one))
                if on_answered is not None:
                    on_answered(len(ids))
        finally:
            for _ in range(_AT_ONCE):
                self._free.acquire()
            self._free.release(_AT_ONCE)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return [self._right.pop(request_id) for request_id in ids]

    def close(self) -> None:
        """End the engine and its threads."""
        self._engine.stop(drain_seconds=0.0)
        self._runner.close()

    def _submit(self, planned: PlannedExample) -> str:
        """Send one request, for which a place was taken; it is given back where nothing was sent."""
        request_id = f"example-{next(self._ids)}"
        self._right[request_id] = False
        prompt, answer = planned.example.prompt_ids, planned.example.answer_ids
        num_read: int | None = None
        if self._writes:
            wanted = str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()
            self._texts[request_id] = ""
            sampling = SamplingParams(temperature=0.0, max_tokens=len(answer) + _SPARE_TOKENS)
            hear = partial(self._hear_text, request_id, wanted)
        else:
            num_read = len(prompt) - 1
            prompt = (*prompt, *answer)
            sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=1)
            hear = partial(self._hear_scores, request_id, len(answer))
        try:
            plan = planned.plan
            if plan.preparation is not None:
                plan = self._runner.run(self._preparer.prepared(plan, planned.example.prompt_ids))
            request = EngineRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=sampling,
                plan=plan,
                num_read_tokens=num_read,
            )
            self._engine.submit(request, hear)
        except HiloraError:
            self._free.release()
            raise
        return request_id

    def _hear_scores(self, request_id: str, num_answer: int, event: EngineEvent) -> None:
        if isinstance(event, TextDelta) and event.prompt_logprobs:
            positions = event.prompt_logprobs[-num_answer:]
            self._right[request_id] = all(one.top[0].token_id == one.chosen.token_id for one in positions)
        self._hear_end(event)

    def _hear_text(self, request_id: str, wanted: str, event: EngineEvent) -> None:
        if isinstance(event, TextDelta):
            self._texts[request_id] += event.text
        if isinstance(event, Finished):
            self._right[request_id] = self._texts.pop(request_id).strip() == wanted
        self._hear_end(event)

    def _hear_end(self, event: EngineEvent) -> None:
        if isinstance(event, Failed) and self._error is None:
            self._error = event.error
        if isinstance(event, Finished | Failed):
            self._free.release()
