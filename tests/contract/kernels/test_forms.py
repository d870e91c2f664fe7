"""Every form of the ROC arithmetic does the same work: the CPU kernel, union, packs, chunks, selections, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hilora.adapter import RocBasis
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.kernels.native_ops import NativeTable, is_native_usable
from services.worker.lora.gating import batch_plan
from services.worker.lora.gating.batch_plan import StepRocs, StepRocsBuilder
from services.worker.lora.gating.native_form import NativeSegment
from services.worker.lora.gating.torch_form import ChunkSegment, PackSegment, UnionSegment
from services.worker.lora.gating.triton_form import TritonSegment
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.engine import make_plan
from tests.builders.models import make_adapter

_CPU = torch.device("cpu")
_SHAPES = {"q": (33, 20), "up": (33, 130), "down": (130, 33)}
_RANKS: list[int | dict[str, int]] = [5, 1, {"q": 3, "down": 7}, 8, {"up": 2}, 4]
_RULES = [(scope, score) for scope in GateScope for score in RocScore]


class Stage:
    """One pool, builders for every form over it, and plans."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
        self.dtype = dtype
        self.pool = RocPool(modules=modules, capacity_bytes=1 << 20, dtype=dtype, device=_CPU)
        for idx, rank in enumerate(_RANKS):
            adapter = make_adapter(_SHAPES, rank=rank, seed=idx)
            key = RocKey(f"a{idx}", RocBasis.TRAINED)
            assert self.pool.try_acquire([key], {key: self.pool.sizes_of(adapter, adapter_id=key.adapter_id)})
            self.pool.write(key, adapter)
            self.pool.commit(key)

    def plan(self, members: Sequence[int], rule: int, *, num_rocs: int = 2) -> RoutingPlan:
        ranks = [max(rank.values()) if isinstance(rank, dict) else rank for rank in _RANKS]
        budgets = [(f"a{idx}", ranks[idx], min(num_rocs, ranks[idx]), 0.5 + 0.25 * idx) for idx in members]
        return make_plan(*budgets, scope=_RULES[rule % 4][0], score=_RULES[rule % 4][1], eta=0.75)

    def inputs(self, num_tokens: int, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(width)
        return torch.randn(num_tokens, width, generator=generator, dtype=torch.float64).to(self.dtype)

    def builder(self, form: str, monkeypatch: pytest.MonkeyPatch) -> StepRocsBuilder:
        monkeypatch.setattr(batch_plan, "MAX_UNION_COLUMNS", 0 if form == "packs" else 512)
        chosen = form if form in {"native", "triton"} else "torch"
        return StepRocsBuilder(self.pool, dtype=self.dtype, device=_CPU, form=chosen)


def _outputs(stage: Stage, step: StepRocs | None, num_tokens: int) -> list[torch.Tensor]:
    assert step is not None
    outputs = []
    for module_idx, (num_in, num_out) in enumerate(_SHAPES.values()):
        y = torch.zeros(num_tokens, num_out, dtype=stage.dtype)
        step.add(module_idx, stage.inputs(num_tokens, num_in), y)
        outputs.append(y)
    return outputs


def _plans(stage: Stage, num_tokens: int, *, num_rocs: int = 2) -> list[RoutingPlan]:
    rng = np.random.default_rng(num_tokens)
    return [
        stage.plan(rng.choice(len(_RANKS), size=1 + row % 4, replace=False).tolist(), row, num_rocs=num_rocs)
        for row in range(num_tokens)
    ]


def test_the_kernel_is_compiled_here() -> None:
    """Where it is not, requests are slower and nothing else; but then these tests would say nothing about it."""
    assert NativeTable is not None
    assert is_native_usable(dtype=torch.float32, device=_CPU)
    assert not is_native_usable(dtype=torch.bfloat16, device=_CPU)


@pytest.mark.parametrize("num_rocs", [1, 3, 8])
@pytest.mark.parametrize(
    ("form", "num_tokens"),
    # Triton's interpreter takes a second for a token; each is a program of its own: many are nothing else than few.
    [*((form, number) for form in ("native", "packs") for number in (1, 5, 40)), *(("triton", n) for n in (1, 9))],
)
def test_decode_rows_equal_the_union_form(form, num_rocs, num_tokens, monkeypatch) -> None:
    stage = Stage()
    plans = _plans(stage, num_tokens, num_rocs=num_rocs)
    expected = _outputs(
        stage, stage.builder("union", monkeypatch).build(decode_plans=plans, chunk_plans=[]), num_tokens
    )
    found = _outputs(stage, stage.builder(form, monkeypatch).build(decode_plans=plans, chunk_plans=[]), num_tokens)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert max(float(other.abs().max()) for other in expected) > 0.1


@pytest.mark.parametrize(
    ("form", "num_threads", "num_prompt_tokens"),
    # Pieces of sixteen tokens, the last one not full: two of them are enough for the interpreter.
    [("native", 1, 97), ("native", 2, 97), ("triton", 1, 20)],
)
def test_decode_rows_and_chunks_together_equal_the_torch_forms(
    form, num_threads, num_prompt_tokens, monkeypatch
) -> None:
    stage, before = Stage(), torch.get_num_threads()
    decodes = _plans(stage, 3)
    base = 3 + num_prompt_tokens
    end = base + 7 + 33
    chunks = [
        (slice(3, base), None, stage.plan([0, 3, 5], 0)),
        (slice(base, base + 7), None, RoutingPlan()),
        (slice(base + 7, end), slice(3, 4), stage.plan([2, 1], 3)),
    ]
    torch_step = stage.builder("union", monkeypatch).build(decode_plans=decodes, chunk_plans=chunks)
    torch.set_num_threads(num_threads)
    try:
        step = stage.builder(form, monkeypatch).build(decode_plans=decodes, chunk_plans=chunks)
        found = _outputs(stage, step, end + 2)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, _outputs(stage, torch_step, end + 2), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert not one[base : base + 7].any()
        assert not one[end:].any()


class TestTheKernel:
    def test_a_row_does_not_depend_on_its_batch_to_the_last_bit(self, monkeypatch) -> None:
        stage = Stage()
        plans = _plans(stage, 23)
        builder = stage.builder("native", monkeypatch)
        together = _outputs(stage, builder.build(decode_plans=plans, chunk_plans=[]), 23)
        for row in (0, 7, 22):
            step = builder.build(decode_plans=[plans[row]], chunk_plans=[])
            assert step is not None
            for module_idx, (num_in, num_out) in enumerate(_SHAPES.values()):
                alone = torch.zeros(1, num_out)
                step.add(module_idx, stage.inputs(23, num_in)[row : row + 1], alone)
                assert torch.equal(alone[0], together[module_idx][row])

    def test_it_adds_to_rows_that_do_not_lie_next_to_each_other(self, monkeypatch) -> None:
        stage = Stage()
        step = stage.builder("native", monkeypatch).build(decode_plans=_plans(stage, 4), chunk_plans=[])
        assert step is not None
        x, wide = stage.inputs(4, 33), torch.ones(4, 60)
        step.add(0, x, wide[:, 10:30])
        expected = torch.zeros(4, 20)
        step.add(0, x, expected)
        torch.testing.assert_close(wide[:, 10:30] - 1, expected, rtol=1e-5, atol=1e-5)
        assert (wide[:, :10] == 1).all()
        assert (wide[:, 30:] == 1).all()

    def test_among_equal_scores_the_lower_slot_wins(self, monkeypatch) -> None:
        stage = Stage()
        arena = stage.pool.arena(0)
        rows = stage.pool.rows(RocKey("a3", RocBasis.TRAINED)).of_module(0).tolist()
        arena.a_ND[rows] = arena.a_ND[rows[0]].clone()
        step = stage.builder("native", monkeypatch).build(decode_plans=[stage.plan([3], 0)], chunk_plans=[])
        assert step is not None
        x, y = stage.inputs(1, 33), torch.zeros(1, 20)
        step.add(0, x, y)
        kept = arena.b_NO[rows[:2]].sum(dim=0) * (arena.a_ND[rows[0]] @ x[0]) * 0.75 * (0.5 + 0.25 * 3)
        torch.testing.assert_close(y[0], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["native", "triton", "union", "packs"])
class TestSelections:
    """Layers that see some of the step's tokens, in any order: the experts of a mixture."""

    def test_selected_rows_equal_their_rows_of_the_whole(self, form, monkeypatch) -> None:
        stage = Stage()
        chunks = [(slice(4, 9), None, stage.plan([0, 2], 1)), (slice(10, 14), None, stage.plan([5], 2))]
        step = stage.builder(form, monkeypatch).build(decode_plans=_plans(stage, 4), chunk_plans=chunks)
        whole = _outputs(stage, step, 16)
        token_idx = torch.tensor([13, 0, 9, 5, 5, 2, 15, 10])
        assert step is not None
        for module_idx, (num_in, num_out) in enumerate(_SHAPES.values()):
            y = torch.full((len(token_idx), num_out), 2.0)
            step.add(module_idx, stage.inputs(16, num_in)[token_idx], y, token_idx_T=token_idx)
            torch.testing.assert_close(y - 2, whole[module_idx][token_idx], rtol=1e-4, atol=1e-4)

    def test_an_embedding_reads_one_entry_of_each_component(self, form, monkeypatch) -> None:
        stage = Stage()
        chunks = [(slice(3, 7), None, stage.plan([0, 3], 0))]
        step = stage.builder(form, monkeypatch).build(decode_plans=_plans(stage, 3), chunk_plans=chunks)
        assert step is not None
        token_ids = torch.tensor([4, 32, 0, 7, 7, 12, 1, 30])
        found, expected = torch.zeros(8, 20), torch.zeros(8, 20)
        step.add_embedding(0, token_ids, found)
        step.add(0, torch.nn.functional.one_hot(token_ids, 33).float(), expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert expected[:7].abs().max() > 0


class TestChoice:
    def test_each_form_is_chosen_by_its_rule(self, monkeypatch) -> None:
        stage = Stage()
        runs = stage.plan([0, 1], 0)
        chunk = [(slice(1, 4), None, runs)]
        kinds = {}
        for form in ("native", "triton", "union", "packs"):
            builder = stage.builder(form, monkeypatch)
            step = builder.build(decode_plans=[runs], chunk_plans=chunk)
            assert step is not None
            kinds[form] = [type(segment) for segment in step._token_segments]
        assert kinds == {
            "native": [NativeSegment],
            "triton": [TritonSegment],
            "union": [UnionSegment, ChunkSegment],
            "packs": [PackSegment, ChunkSegment],
        }

    def test_segments_are_built_once_while_nothing_changes(self, monkeypatch) -> None:
        stage = Stage()
        builder = stage.builder("native", monkeypatch)
        plans = _plans(stage, 4)
        first = builder.build(decode_plans=plans, chunk_plans=[])
        chunk = [(slice(4, 9), None, plans[0])]
        builder.build(decode_plans=plans, chunk_plans=chunk)
        again = builder.build(decode_plans=plans, chunk_plans=[])
        assert first is not None
        assert again is not None
        assert first._token_segments[0] is again._token_segments[0]

    def test_the_output_embedding_sees_the_sampled_rows(self, monkeypatch) -> None:
        stage = Stage()
        builder = stage.builder("native", monkeypatch)
        decodes, plan = _plans(stage, 2), stage.plan([0, 3], 0)
        step = builder.build(decode_plans=decodes, chunk_plans=[(slice(2, 9), slice(2, 3), plan)])
        rows = builder.build(decode_plans=[*decodes, plan], chunk_plans=[])
        assert step is not None
        assert rows is not None
        x, found, expected = stage.inputs(3, 33), torch.zeros(3, 20), torch.zeros(3, 20)
        step.add(0, x, found, is_output_embedding=True)
        rows.add(0, x, expected)
        assert torch.equal(found, expected)
        assert found[2].any()
