"""What a step's rows need of the ROC pool, and which form does it.

Shapes: T packed tokens of a step, D in-features, O out-features, K selected rows.

A step's rows are cut into segments, each of which adds its rows' ROC output to what the base layer made. Rows without
ROCs are in no segment, and a step without ROCs has no segments at all, so that its linear layers do exactly what the
base model's do. Which form a segment takes is chosen once per step, by what was measured (docs/benchmarks.md):

    a GPU with Triton                     one segment for all rows, two kernels a layer
    float32 on a CPU, kernel compiled     one native segment for all rows
    otherwise, decode rows                union of all components up to 512 columns, packs above
    otherwise, prompt chunks              dense products with the plan's components
    plans with another rule than `rocs`   adaptive segments, each of plans with one rule
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, Protocol

import numpy as np
import torch

from hilora.routing_plan import GateRule, RoutingPlan
from services.worker.kernels.native_ops import is_native_usable
from services.worker.lora.gating.adaptive_segment import AdaptiveSegment
from services.worker.lora.gating.gate_tables import PlanTable, StepTable, plan_table
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.gating.native_form import NativeSegment
from services.worker.lora.gating.row_runs import Run, adaptive_parts
from services.worker.lora.gating.torch_form import ChunkSegment, PackSegment, TokenGates, UnionSegment
from services.worker.lora.pool.roc_pool import RocPool

RocForm = Literal["auto", "native", "triton", "torch"]
MAX_UNION_COLUMNS = 512
"""Components of a step up to which one product with all of them beats a pack per row."""
_MAX_CACHED_PLANS = 1024
"""Plans whose tables are kept; a table is a few kilobytes."""
_MAX_CACHED_GATES = 64
"""Plans whose tensors for prompt chunks are kept in the torch form; some 1.5 kilobytes a layer."""
_MAX_CACHED_LAYOUTS = 4
"""Row layouts whose segments are kept: decode-only steps alternate with steps that also read prompts."""


class Segment(Protocol):
    """Consecutive rows of a step that are handled together."""

    rows: slice

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add the ROCs' output for inputs `x` to `y`, in place; both hold this segment's rows only."""
        ...

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """The same for a selection of the segment's rows, in any order: row `i` of `x` is its row `row_idx[i]`."""
        ...

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """The same for an embedding, whose input is a token id: `a . x` is the id's entry of `a`."""
        ...


def decode_order(plan: RoutingPlan) -> tuple[int, str]:
    """Sort key of a step's decode rows: rows that gate by components, then rule by rule and gate by gate those of other
    rules, with equal plans as neighbours, then rows without ROCs."""
    if plan.is_base_only:
        return (2, "")
    return (0, "") if plan.gate.rule is GateRule.ROCS else (1, f"{plan.gate.rule} {plan.gate.gate_id} {plan.digest}")


class StepRocs:
    """The segments of one step.

    Args:
        token_segments: over all packed tokens of the step.
        token_runs: the plans of those tokens.
        logit_runs: which rows reach the output embedding, and their plans.
        builder: makes the segments of the output embedding, which few adapters target, when they are asked for.
    """

    def __init__(
        self,
        token_segments: Sequence[Segment],
        token_runs: Sequence[Run],
        logit_runs: Sequence[Run],
        builder: StepRocsBuilder,
    ) -> None:
        self._token_segments = tuple(token_segments)
        self._token_runs = tuple(token_runs)
        self._logit_runs = tuple(logit_runs)
        self._builder = builder
        self._is_targeted_M: np.ndarray | None = None

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        *,
        is_output_embedding: bool = False,
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        """Add every segment's ROC output to `y` in place.

        Args:
            module_idx: the layer.
            x_TD: its input.
            y_TO: what the base layer made of it.
            is_output_embedding: rows are the sampled ones only.
            token_idx_T: which token of the step each row is, for a layer that sees a selection; None: row i is token i.
        """
        if is_output_embedding:
            if not self.is_targeted(module_idx):
                return
            segments = self._builder.segments(self._logit_runs)
        else:
            segments = self._token_segments
        if token_idx_T is None:
            for segment in segments:
                if segment.rows.stop - segment.rows.start == len(x_TD):
                    # Slicing costs some microseconds, a few hundred times a step.
                    segment.add(module_idx, x_TD, y_TO)
                else:
                    segment.add(module_idx, x_TD[segment.rows], y_TO[segment.rows])
            return
        if len(segments) == 1 and isinstance(segments[0], NativeSegment):
            segments[0].add_selected(module_idx, x_TD, token_idx_T, y_TO)
            return
        for segment in segments:
            of_segment = (token_idx_T >= segment.rows.start) & (token_idx_T < segment.rows.stop)
            places = of_segment.nonzero()[:, 0]
            if len(places) == 0:
                continue
            y_KO = y_TO.new_zeros(len(places), y_TO.shape[1])
            segment.add_selected(module_idx, x_TD[places], token_idx_T[places] - segment.rows.start, y_KO)
            y_TO.index_add_(0, places, y_KO)

    def is_targeted(self, module_idx: int) -> bool:
        """Whether any token's adapters have components in a layer. Layers that see a selection of the tokens ask before
        they prepare it: a mixture has thousands of them, and most adapters target none."""
        return bool(self._targeted_modules()[module_idx])

    def has_targets(self, module_idxs: slice) -> bool:
        """The same for any of several layers."""
        return bool(self._targeted_modules()[module_idxs].any())

    def _targeted_modules(self) -> np.ndarray:
        if self._is_targeted_M is None:
            self._is_targeted_M = self._builder.targeted_modules(self._token_runs)
        return self._is_targeted_M

    def only_segment(self) -> Segment | None:
        """The segment that does all of the step's work, if there is just one."""
        return self._token_segments[0] if len(self._token_segments) == 1 else None

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add every segment's ROC output of an embedding to `y` `[T, O]` in place."""
        if not self.is_targeted(module_idx):
            return
        for segment in self._token_segments:
            segment.add_embedding(module_idx, token_ids_T[segment.rows], y_TO[segment.rows])


class StepWork(Protocol):
    """What gated layers ask of a step: `StepRocs`, or the buffers of a captured graph."""

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        *,
        is_output_embedding: bool = False,
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        """See `StepRocs`."""
        ...

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `StepRocs`."""
        ...

    def is_targeted(self, module_idx: int) -> bool:
        """See `StepRocs`."""
        ...

    def has_targets(self, module_idxs: slice) -> bool:
        """See `StepRocs`."""
        ...


class RocContext:
    """Where gated layers find the current step. The runner sets `step` before each forward pass; None: base only."""

    def __init__(self) -> None:
        self.step: StepWork | None = None


class StepRocsBuilder:
    """Builds `StepRocs`, reusing what the last steps built while nothing changed.

    Args:
        pool: where the rows are.
        gates: learned gates of plans that name one.
        dtype: of the model's activations.
        device: the model's.
        form: `auto` takes what is fastest where the model is; tests and benchmarks name one.
    """

    def __init__(
        self,
        pool: RocPool,
        *,
        dtype: torch.dtype,
        device: torch.device,
        gates: LearnedGates | None = None,
        form: RocForm = "auto",
    ) -> None:
        self._pool = pool
        self._gates = gates
        self._num_gate_evictions = 0
        self._dtype = dtype
        self._device = device
        self._form = _chosen_form(dtype, device) if form == "auto" else form
        self._plan_tables: OrderedDict[str, PlanTable] = OrderedDict()
        self._chunk_gates: OrderedDict[tuple[str, tuple[int, ...]], TokenGates] = OrderedDict()
        self._layout_version = pool.layout_version
        self._placements: dict[str, tuple[int, ...]] = {}
        self._segments: OrderedDict[tuple[object, ...], tuple[Segment, ...]] = OrderedDict()

    def build(
        self, *, decode_plans: Sequence[RoutingPlan], chunk_plans: Sequence[tuple[slice, slice | None, RoutingPlan]]
    ) -> StepRocs | None:
        """The segments of a step, or None if no row has ROCs.

        Args:
            decode_plans: plans of the first rows, in the order of `decode_order`, none of them base-only.
            chunk_plans: for each prompt chunk its rows, its rows among the logits (None if it has none there), and its
                plan. Decode rows are the first rows among the logits, too.
        """
        tokens = [Run(start=row, stop=row + 1, plan=plan) for row, plan in enumerate(decode_plans)]
        logits = list(tokens)
        for rows, logit_rows, plan in chunk_plans:
            if plan.is_base_only:
                continue
            tokens.append(Run(start=rows.start, stop=rows.stop, plan=plan))
            if logit_rows is not None:
                logits.append(Run(start=logit_rows.start, stop=logit_rows.stop, plan=plan))
        return StepRocs(self.segments(tokens), tokens, logits, self) if tokens else None

    def segments(self, runs: Sequence[Run]) -> tuple[Segment, ...]:
        """The segments of some rows with plans."""
        self._forget_evicted_gates()
        key = tuple((run.start, run.stop, run.plan.digest, self._placements_of(run.plan)) for run in runs)
        segments = self._segments.pop(key, None)
        if segments is None:
            segments = tuple(self._made(runs))
        self._segments[key] = segments
        while len(self._segments) > _MAX_CACHED_LAYOUTS:
            self._segments.popitem(last=False)
        return segments

    def targeted_modules(self, runs: Sequence[Run]) -> np.ndarray:
        """Whether any of the rows' adapters has components in each layer, bool `[M]`."""
        plans = {run.plan.digest: run.plan for run in runs}
        return np.logical_or.reduce([self._plan_table(plan).is_targeted_M for plan in plans.values()])

    def _made(self, runs: Sequence[Run]) -> list[Segment]:
        by_components = [run for run in runs if run.plan.gate.rule is GateRule.ROCS]
        segments: list[Segment] = []
        if by_components and self._form == "native":
            segments.append(NativeSegment(self._step_table(by_components), self._pool))
        elif by_components and self._form == "triton" and self._fits_triton(by_components):
            from services.worker.lora.gating.triton_form import TritonSegment

            table = self._step_table(by_components)
            segments.append(TritonSegment(table, self._pool, dtype=self._dtype, device=self._device))
        elif by_components:
            segments.extend(self._torch_segments(by_components))
        adaptive = [run for run in runs if run.plan.gate.rule is not GateRule.ROCS]
        segments.extend(map(self._adaptive_segment, adaptive_parts(adaptive, self._plan_table)))
        return segments

    def _adaptive_segment(self, runs: Sequence[Run]) -> AdaptiveSegment:
        start = runs[0].start
        own = [Run(start=run.start - start, stop=run.stop - start, plan=run.plan) for run in runs]
        return AdaptiveSegment(
            slice(start, runs[-1].stop),
            list({run.plan.digest: run.plan for run in runs}.values()),
            self._step_table(own),
            self._pool,
            self._gates,
            dtype=self._dtype,
            device=self._device,
        )

    def _fits_triton(self, runs: Sequence[Run]) -> bool:
        from services.worker.lora.gating.triton_form import MAX_CONTEST_SLOTS

        return all(max(self._plan_table(run.plan).group_sizes) <= MAX_CONTEST_SLOTS for run in runs)

    def _torch_segments(self, runs: Sequence[Run]) -> list[Segment]:
        # Single rows one after another, from row 0: the decode rows. Everything else is a chunk.
        num_decodes = next((idx for idx, run in enumerate(runs) if (run.start, run.stop) != (idx, idx + 1)), len(runs))
        segments: list[Segment] = []
        if num_decodes:
            table = self._step_table(runs[:num_decodes])
            gates = TokenGates(table, self._pool, dtype=self._dtype, device=self._device)
            rows = slice(0, num_decodes)
            if table.num_columns <= MAX_UNION_COLUMNS:
                segments.append(UnionSegment(rows, table, gates, self._pool))
            else:
                segments.append(PackSegment(rows, gates, self._pool))
        for run in runs[num_decodes:]:
            segments.append(ChunkSegment(slice(run.start, run.stop), self._gates_of(run.plan), self._pool))
        return segments

    def _step_table(self, runs: Sequence[Run]) -> StepTable:
        places: dict[str, int] = {}
        token_plans = np.full(max(run.stop for run in runs), -1, dtype=np.int32)
        plans: list[PlanTable] = []
        for run in runs:
            if run.plan.digest not in places:
                places[run.plan.digest] = len(plans)
                plans.append(self._plan_table(run.plan))
            token_plans[run.start : run.stop] = places[run.plan.digest]
        return StepTable(plans, token_plans, self._pool)

    def _plan_table(self, plan: RoutingPlan) -> PlanTable:
        table = self._plan_tables.pop(plan.digest, None) or plan_table(plan, self._pool)
        self._plan_tables[plan.digest] = table
        while len(self._plan_tables) > _MAX_CACHED_PLANS:
            self._plan_tables.popitem(last=False)
        return table

    def _placements_of(self, plan: RoutingPlan) -> tuple[int, ...]:
        """Changes when any of the plan's adapters moves: what is made from their rows is good while it stays.

        Asked for every row of every step, so it is looked up anew only after something in the pool has moved.
        """
        if self._layout_version != self._pool.layout_version:
            self._placements.clear()
            self._layout_version = self._pool.layout_version
        placements = self._placements.get(plan.digest)
        if placements is None:
            if len(self._placements) >= _MAX_CACHED_PLANS:
                self._placements.clear()
            placements = tuple(self._pool.placement(key) for key in self._plan_table(plan).keys)
            self._placements[plan.digest] = placements
        return placements

    def _forget_evicted_gates(self) -> None:
        """Let go of learned gates that have left the device: their memory is somebody else's now."""
        if self._gates is not None and self._gates.num_evictions != self._num_gate_evictions:
            self._num_gate_evictions = self._gates.num_evictions
            self._segments.clear()

    def _gates_of(self, plan: RoutingPlan) -> TokenGates:
        key = (plan.digest, self._placements_of(plan))
        gates = self._chunk_gates.pop(key, None)
        if gates is None:
            table = StepTable([self._plan_table(plan)], np.zeros(1, dtype=np.int32), self._pool)
            gates = TokenGates(table, self._pool, dtype=self._dtype, device=self._device)
        self._chunk_gates[key] = gates
        while len(self._chunk_gates) > _MAX_CACHED_GATES:
            self._chunk_gates.popitem(last=False)
        return gates


def _chosen_form(dtype: torch.dtype, device: torch.device) -> RocForm:
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton"
    return "native" if is_native_usable(dtype=dtype, device=device) else "torch"
