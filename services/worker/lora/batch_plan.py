"""What a step's rows need of the ROC pool.

Shapes: T packed tokens of a step, D in-features, O out-features, U rows of a union, G groups, S slots of a group.

A step's rows are cut into segments. `DecodeSegment`: one token per row, each with a plan of its own: one shrink
against the union of all candidates, then each row gathers its own columns, and the expand reads only the rows it keeps.
`ChunkSegment`: many tokens of one plan: dense products with that plan's rows. Rows without ROCs are in no segment, and
a step without ROCs has no segments at all, so that their linear layers do exactly what the base model's do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from hilora.routing_plan import RoutingPlan
from services.worker.kernels import torch_ops
from services.worker.lora.gate_tables import GateTable, TableBuilder
from services.worker.lora.roc_pool import RocKey, RocPool

_MAX_CACHED_PLANS = 256
"""Plans whose chunk tables are kept; a table is a few kilobytes."""
_MAX_UNION_SLACK = 2
"""A union is reused while it is at most this many times as large as the batch needs."""


class Segment(Protocol):
    """Consecutive rows of a step that are handled together."""

    rows: slice

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add the ROCs' output for inputs `x` to `y`, in place; both hold this segment's rows only."""
        ...


class StepRocs:
    """The segments of one step.

    Args:
        token_segments: over all packed tokens of the step.
        logit_segments: over the rows that reach the output embedding: the last token of each sampling request.
    """

    def __init__(self, token_segments: Sequence[Segment], logit_segments: Sequence[Segment]) -> None:
        self._token_segments = tuple(token_segments)
        self._logit_segments = tuple(logit_segments)

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor, *, is_output_embedding: bool) -> None:
        """Add every segment's ROC output to `y` `[T, O]` in place."""
        for segment in self._logit_segments if is_output_embedding else self._token_segments:
            segment.add(module_idx, x_TD[segment.rows], y_TO[segment.rows])


class RocContext:
    """Where gated linears find the current step. The runner sets `step` before each forward pass; None: base only."""

    def __init__(self) -> None:
        self.step: StepRocs | None = None


class _Union:
    """Down-vectors of several adapters, gathered once per module and kept while the batch needs no others."""

    def __init__(self, keys: Sequence[RocKey], pool_rows: np.ndarray, pool: RocPool, device: torch.device) -> None:
        self.keys = frozenset(keys)
        self.layout_version = pool.layout_version
        self.size = len(pool_rows)
        self._pool = pool
        self._rows_U = torch.from_numpy(pool_rows).to(device)
        self._columns = torch.zeros(int(pool_rows.max()) + 1, dtype=torch.int64, device=device)
        self._columns[self._rows_U] = torch.arange(self.size, device=device)
        self._a: dict[int, torch.Tensor] = {}

    def columns_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Column of the union for each pool row."""
        return self._columns[rows]

    def down_vectors(self, module_idx: int) -> torch.Tensor:
        """Down-vectors of a module `[U, D]`."""
        a_UD = self._a.get(module_idx)
        if a_UD is None:
            a_UD = self._pool.arena(module_idx).a_ND.index_select(0, self._rows_U)
            self._a[module_idx] = a_UD
        return a_UD


class DecodeSegment:
    """One token per row, each with a plan of its own."""

    def __init__(self, rows: slice, tables: Sequence[GateTable | None], union: _Union, pool: RocPool) -> None:
        self.rows = rows
        self._tables = tables
        self._union = union
        self._pool = pool
        # Modules share tables; so do their columns.
        columns = {id(table): union.columns_of(table.rows_TGS).flatten(1) for table in tables if table is not None}
        self._columns = [None if table is None else columns[id(table)] for table in tables]

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table, columns = self._tables[module_idx], self._columns[module_idx]
        if table is None or columns is None:
            return
        arena = self._pool.arena(module_idx)
        h_TU = torch_ops.roc_shrink(x_TD, self._union.down_vectors(module_idx))
        h_TGS = h_TU.gather(1, columns).view(table.rows_TGS.shape)
        norms = None if table.gate.norm_weights_T11 is None else arena.b_norms_N[table.rows_TGS]
        kept = torch_ops.roc_gate(h_TGS, table.gate, norms)
        y_TO += torch_ops.roc_expand(kept, table.rows_TGS, arena.b_NO, table.bag_starts_T)


class ChunkSegment:
    """Many tokens of one plan."""

    def __init__(self, rows: slice, tables: Sequence[GateTable | None], pool: RocPool) -> None:
        self.rows = rows
        self._tables = tables
        self._pool = pool

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._tables[module_idx]
        if table is None:
            return
        arena = self._pool.arena(module_idx)
        rows_R = table.rows_TGS.flatten()
        h_TR = torch_ops.roc_shrink(x_TD, arena.a_ND.index_select(0, rows_R))
        norms = None if table.gate.norm_weights_T11 is None else arena.b_norms_N[table.rows_TGS]
        kept = torch_ops.roc_gate(h_TR.view(-1, *table.rows_TGS.shape[1:]), table.gate, norms)
        y_TO += torch_ops.roc_expand_shared(kept, table.num_slots, arena.b_NO.index_select(0, rows_R))


class StepRocsBuilder:
    """Builds `StepRocs`, reusing what the last steps built while nothing changed.

    Args:
        pool: where the rows are.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(self, pool: RocPool, *, dtype: torch.dtype, device: torch.device) -> None:
        self._pool = pool
        self._dtype = dtype
        self._device = device
        self._union: _Union | None = None
        self._decode: tuple[tuple[object, ...], DecodeSegment] | None = None
        self._chunk_tables: OrderedDict[tuple[str, int], list[GateTable | None]] = OrderedDict()

    def build(
        self, *, decode_plans: Sequence[RoutingPlan], chunk_plans: Sequence[tuple[slice, int | None, RoutingPlan]]
    ) -> StepRocs | None:
        """The segments of a step, or None if no row has ROCs.

        Args:
            decode_plans: plans of the first rows, none of them base-only.
            chunk_plans: for each prefill chunk its rows, its row among the logits (None if it does not sample), and
                its plan.
        """
        tokens: list[Segment] = []
        logits: list[Segment] = []
        if decode_plans:
            decode = self._decode_segment(decode_plans)
            tokens.append(decode)
            logits.append(decode)
        for rows, logit_row, plan in chunk_plans:
            if plan.is_base_only:
                continue
            tables = self._tables_of(plan)
            tokens.append(ChunkSegment(rows, tables, self._pool))
            if logit_row is not None:
                logits.append(ChunkSegment(slice(logit_row, logit_row + 1), tables, self._pool))
        return StepRocs(tokens, logits) if tokens else None

    def _decode_segment(self, plans: Sequence[RoutingPlan]) -> DecodeSegment:
        key = (self._pool.layout_version, *(plan.digest for plan in plans))
        if self._decode is None or self._decode[0] != key:
            builder = TableBuilder(plans, self._pool, dtype=self._dtype, device=self._device)
            segment = DecodeSegment(
                slice(len(plans)), builder.tables(self._pool.num_modules), self._union_of(builder), self._pool
            )
            self._decode = (key, segment)
        return self._decode[1]

    def _union_of(self, builder: TableBuilder) -> _Union:
        union, rows = self._union, builder.pool_rows
        is_usable = (
            union is not None
            and union.layout_version == self._pool.layout_version
            and union.keys.issuperset(builder.keys)
            and union.size <= _MAX_UNION_SLACK * len(rows)
        )
        if union is None or not is_usable:
            union = self._union = _Union(builder.keys, rows, self._pool, self._device)
        return union

    def _tables_of(self, plan: RoutingPlan) -> list[GateTable | None]:
        key = (plan.digest, self._pool.layout_version)
        tables = self._chunk_tables.pop(key, None)
        if tables is None:
            builder = TableBuilder([plan], self._pool, dtype=self._dtype, device=self._device)
            tables = builder.tables(self._pool.num_modules)
        self._chunk_tables[key] = tables
        while len(self._chunk_tables) > _MAX_CACHED_PLANS:
            self._chunk_tables.popitem(last=False)
        return tables
