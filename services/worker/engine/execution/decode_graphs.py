"""Decode steps as captured CUDA graphs: one launch instead of one per kernel.

At batch 1 an 8B model takes longer to launch than to compute; the ROC kernels add two launches to every layer. A graph
is captured for each padded batch size, once with ROC work and once without, reading nothing but buffers of fixed size;
a step copies its tables into them and replays. Steps that do something a graph cannot (prompt chunks, other gate rules,
adapters of embeddings or of the output embedding) run as they are, and so do those whose capture failed: there are
models, and libraries below them, that wait for the device in the middle of a pass.

What a graph is, is behind `GraphRecorder`: on a GPU torch's own capture; in tests the same forward pass again, so that
buffers and padding are tested where there is no GPU.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from services.worker.engine.execution.batch import StepBatch
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.lora.gating.batch_plan import RocContext
from services.worker.lora.gating.triton_form import TritonBuffers, TritonSegment
from services.worker.lora.pool.roc_arena import RocArena
from services.worker.models.attention import AttentionContext
from services.worker.models.paged_attention import PagedAttentionStep
from services.worker.models.static_decode import StaticDecodeStep

_log = logging.getLogger(__name__)

_MAX_GRAPHS = 64
"""Graphs that are kept, those used last."""


class GraphRecorder(Protocol):
    """Turns a function without arguments into something that repeats its work on the same buffers."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """The buffer that the result appears in, and the function that fills it again."""
        ...


class CudaGraphRecorder:
    """torch's capture. All graphs share one memory pool: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """See `GraphRecorder`. The work runs twice before: kernels are compiled and workspaces made outside."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The outer context leaves the stream of now in place even if the capture fails: torch would stay on its own.
        # Loader threads go on allocating and copying meanwhile; that is none of the capture's business.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            output = work()
        return output, graph.replay


@dataclass(frozen=True, slots=True)
class _Same:
    """Equal to itself alone, and keeps what it holds alive."""

    arena: RocArena

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.arena is other.arena

    def __hash__(self) -> int:
        return id(self.arena)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    token_ids_B: torch.Tensor
    positions_B: torch.Tensor
    attention: StaticDecodeStep
    rocs: TritonBuffers | None
    logits_BV: torch.Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The graphs of one model.

    Args:
        model: with gated layers and attached attention.
        kv_cache: with pages, and a kernel that attends to them.
        capturable: modules whose ROC work a graph can repeat (`capturable_modules`).
        roc_context: of the gated layers.
        attention_context: of the attention layers.
        max_num_seqs: rows of the largest graph.
        recorder: makes graphs.
        device: the model's.
    """

    def __init__(
        self,
        *,
        model: Any,
        kv_cache: PagedKvCache,
        capturable: frozenset[int],
        roc_context: RocContext,
        attention_context: AttentionContext,
        max_num_seqs: int,
        recorder: GraphRecorder,
        device: torch.device,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._capturable = capturable
        self._roc_context = roc_context
        self._attention_context = attention_context
        self._sizes = graph_sizes(max_num_seqs)
        self._recorder = recorder
        self._device = device
        # None for what could not be captured: it is not tried again in every step.
        self._graphs: OrderedDict[tuple[object, ...], _Captured | None] = OrderedDict()

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, batch: StepBatch) -> torch.Tensor | None:
        """Logits `[S, V]` of a decode-only step, or None if no graph can serve it."""
        attention = batch.attention
        if not isinstance(attention, PagedAttentionStep) or not attention.is_decode_only:
            return None
        if attention.varlen_rows is None:
            return None
        segment = None
        if batch.rocs is not None:
            segment = batch.rocs.only_segment()
            if not isinstance(segment, TritonSegment) or not segment.targeted <= self._capturable:
                return None
        num_rows = len(batch.token_ids_T)
        size = next((size for size in self._sizes if size >= num_rows), None)
        if size is None:
            return None
        graph = self._graph(size, segment)
        if graph is None:
            return None
        graph.token_ids_B[:num_rows] = batch.token_ids_T
        graph.positions_B[:num_rows] = batch.positions_T
        graph.attention.load(attention)
        if graph.rocs is not None and segment is not None:
            segment.load_into(graph.rocs)
        graph.replay()
        # Indexing copies: the buffer belongs to the next replay.
        return graph.logits_BV[batch.logit_rows_S]

    def _graph(self, size: int, segment: TritonSegment | None) -> _Captured | None:
        key: tuple[object, ...] = (size,)
        if segment is not None:
            # Graphs hold addresses: those of an arena that was replaced belong to nobody now.
            # The arenas themselves are in the key, so that no later one can come to lie where they lay.
            key = (size, segment.shape, segment.targeted, tuple(_Same(arena) for arena in segment.arenas))
        graph = self._graphs.pop(key) if key in self._graphs else self._try_capture(size, segment)
        self._graphs[key] = graph
        while len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def _try_capture(self, size: int, segment: TritonSegment | None) -> _Captured | None:
        try:
            return self._capture(size, segment)
        except Exception:  # whatever it is: if the pass itself is at fault, it fails again without a graph
            _log.warning("a decode step of %d rows cannot be captured; it runs as it is", size, exc_info=True)
            return None

    def _capture(self, size: int, segment: TritonSegment | None) -> _Captured:
        token_ids_B = torch.zeros(size, dtype=torch.int64, device=self._device)
        positions_B = torch.zeros(size, dtype=torch.int64, device=self._device)
        attention = self._kv_cache.static_decode_step(size, self._device)
        rocs = None if segment is None else segment.static_buffers(size)
        self._attention_context.step = attention
        self._roc_context.step = rocs
        try:
            logits_BV, replay = self._recorder(lambda: self._forward(token_ids_B, positions_B))
        finally:
            self._attention_context.step = None
            self._roc_context.step = None
        return _Captured(
            token_ids_B=token_ids_B,
            positions_B=positions_B,
            attention=attention,
            rocs=rocs,
            logits_BV=logits_BV,
            replay=replay,
        )

    def _forward(self, token_ids_B: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
        return self._model(input_ids=token_ids_B[None], position_ids=positions_B[None], use_cache=False).logits[0]


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Padded batch sizes: powers of two up to 8, then multiples of 8, and the largest batch itself."""
    sizes = {size for size in (1, 2, 4) if size < max_num_seqs} | set(range(8, max_num_seqs, 8)) | {max_num_seqs}
    return tuple(sorted(sizes))
