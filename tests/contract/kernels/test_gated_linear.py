"""The gated linear layer against `hilora.reference`, over dtype x rank x batch x adapter popularity.

Every case goes the whole way of a step: components in the pool, tables from plans, shrink, gate, expand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.reference import reference_forward
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.lora.gating.batch_plan import RocContext, RocForm, StepRocsBuilder
from services.worker.lora.layers.gated_linear import GatedLinear
from services.worker.lora.pool.residency import keys_of
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.engine import make_plan

_NUM_IN, _NUM_OUT, _NUM_ADAPTERS = 64, 24, 9
_CPU = torch.device("cpu")
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
_RANKS = {"one": lambda idx: 1, "four": lambda idx: 4, "mixed": lambda idx: 1 + (5 * idx) % 7}


def _components(rank: int, idx: int, *, is_exact: bool) -> RankOneComponents:
    generator = torch.Generator().manual_seed(idx)
    b_RO = torch.randn(rank, _NUM_OUT, generator=generator)
    if not is_exact:
        return RankOneComponents(a_RD=torch.randn(rank, _NUM_IN, generator=generator), b_RO=b_RO)
    # Each component reads one coordinate of its own: responses are exact, and distinct, in any floating-point type.
    a_RD = torch.zeros(rank, _NUM_IN)
    a_RD[torch.arange(rank), idx * 7 + torch.arange(rank)] = 1
    return RankOneComponents(a_RD=a_RD, b_RO=torch.nn.functional.normalize(b_RO, dim=1))


def _inputs(num_tokens: int, dtype: torch.dtype, *, is_exact: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    if not is_exact:
        return torch.randn(num_tokens, _NUM_IN, generator=generator, dtype=torch.float64).to(dtype)
    values = [torch.randperm(_NUM_IN, generator=generator) + 1 for _ in range(num_tokens)]
    signs = torch.randint(0, 2, (num_tokens, _NUM_IN), generator=generator) * 2 - 1
    return (torch.stack(values) * signs).to(dtype)


class Bench:
    """One gated layer over a pool of adapters of the given ranks."""

    def __init__(self, ranks: Sequence[int], dtype: torch.dtype, form: RocForm = "auto") -> None:
        self.is_exact = dtype.itemsize < 4
        self.dtype = dtype
        self.ranks = tuple(ranks)
        torch.manual_seed(5)
        self.linear = torch.nn.Linear(_NUM_IN, _NUM_OUT).to(dtype).requires_grad_(False)
        shape = ModuleShape(module_path="m", in_features=_NUM_IN, out_features=_NUM_OUT)
        self.pool = RocPool(modules=[shape], capacity_bytes=1 << 20, dtype=dtype, device=_CPU)
        self.adapters = [_components(rank, idx, is_exact=self.is_exact) for idx, rank in enumerate(ranks)]
        for idx, rocs in enumerate(self.adapters):
            key = RocKey(f"a{idx}", RocBasis.TRAINED)
            adapter = DecomposedAdapter(basis=RocBasis.TRAINED, modules={"m": rocs})
            assert self.pool.try_acquire([key], {key: self.pool.sizes_of(adapter, adapter_id=key.adapter_id)})
            self.pool.write(key, adapter)
            self.pool.commit(key)
        self.context = RocContext()
        self.gated = GatedLinear(self.linear, module_idx=0, context=self.context, is_output_embedding=False)
        self.builder = StepRocsBuilder(self.pool, dtype=dtype, device=_CPU, form=form)

    def plan(self, members: Sequence[int], *, num_rocs: int, scope: GateScope, score: RocScore) -> RoutingPlan:
        # Equal weights where arithmetic is coarse: products of weights and responses would tie there.
        weights = [1.0 if self.is_exact else 1.0 / (2 + place) for place in range(len(members))]
        budgets = [
            (f"a{idx}", self.ranks[idx], min(num_rocs, self.ranks[idx]), weight)
            for idx, weight in zip(members, weights, strict=True)
        ]
        return make_plan(*budgets, scope=scope, score=score, eta=0.5)

    def expected(self, x_TD: torch.Tensor, plan: RoutingPlan) -> torch.Tensor:
        cast = [
            RankOneComponents(a_RD=rocs.a_RD.to(self.dtype).double(), b_RO=rocs.b_RO.to(self.dtype).double())
            for rocs in self.adapters
        ]
        members = [int(budget.adapter_id[1:]) for budget in plan.budgets]
        return reference_forward(
            x_TD.double(),
            w0_OD=self.linear.weight.double(),
            bias_O=self.linear.bias.double(),
            candidates=[cast[idx] for idx in members],
            budgets=[budget.num_rocs for budget in plan.budgets],
            weights=[budget.weight for budget in plan.budgets],
            gate=plan.gate,
        )

    def check(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        scale = expected.abs().max().item() or 1.0
        assert (found.double() - expected).abs().max().item() <= _TOLERANCE[self.dtype] * scale


def _members(popularity: str, row: int, rng: np.random.Generator) -> list[int]:
    """Which three adapters a row's plan names."""
    if popularity == "identical":
        return [0, 4, 7]
    if popularity == "distinct":
        return [(3 * row + place) % _NUM_ADAPTERS for place in range(3)]
    weights = np.ones(_NUM_ADAPTERS) if popularity == "uniform" else 1.0 / np.arange(1, _NUM_ADAPTERS + 1) ** 1.5
    return rng.choice(_NUM_ADAPTERS, size=3, replace=False, p=weights / weights.sum()).tolist()


_FORMS: list[tuple[RocForm, torch.dtype]] = [
    *(("torch", dtype) for dtype in _TOLERANCE),
    ("native", torch.float32),
    *(("triton", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
]
_FORM_IDS = [f"{form}-{str(dtype).removeprefix('torch.')}" for form, dtype in _FORMS]


@pytest.mark.parametrize(
    ("form", "dtype", "num_rows"),
    # Triton's interpreter is slow, and each row is a program of its own; five have every rule, and one twice.
    [(form, dtype, number) for form, dtype in _FORMS for number in (1, 3, 5 if form == "triton" else 12)],
)
@pytest.mark.parametrize("ranks", list(_RANKS))
@pytest.mark.parametrize("popularity", ["distinct", "uniform", "zipf", "identical"])
def test_decode_rows_with_a_plan_each(form, dtype, ranks, num_rows, popularity) -> None:
    bench = Bench([_RANKS[ranks](idx) for idx in range(_NUM_ADAPTERS)], dtype, form)
    rng = np.random.default_rng(3)
    rules = [(scope, score) for scope in GateScope for score in RocScore]
    plans = [
        bench.plan(
            _members(popularity, row, rng),
            num_rocs=1 + row % 3,
            scope=rules[row % 4][0],
            score=rules[row % 4][1],
        )
        for row in range(num_rows)
    ]
    x_TD = _inputs(num_rows + 2, dtype, is_exact=bench.is_exact)
    bench.context.step = bench.builder.build(decode_plans=plans, chunk_plans=[])
    found = bench.gated(x_TD[None])[0]
    for row, plan in enumerate(plans):
        bench.check(found[row], bench.expected(x_TD[row : row + 1], plan)[0])
    # Rows behind the segment belong to requests without ROCs.
    assert torch.equal(found[num_rows:], bench.linear(x_TD)[num_rows:])


@pytest.mark.parametrize(("form", "dtype"), _FORMS, ids=_FORM_IDS)
@pytest.mark.parametrize("ranks", list(_RANKS))
@pytest.mark.parametrize("scope", list(GateScope))
@pytest.mark.parametrize("score", list(RocScore))
def test_chunks_of_one_plan(form, dtype, ranks, scope, score) -> None:
    bench = Bench([_RANKS[ranks](idx) for idx in range(_NUM_ADAPTERS)], dtype, form)
    x_TD = _inputs(11, dtype, is_exact=bench.is_exact)
    first = bench.plan([0, 1, 2], num_rocs=2, scope=scope, score=score)
    second = bench.plan([5], num_rocs=7, scope=scope, score=score)
    chunks = [(slice(0, 6), None, first), (slice(6, 8), None, RoutingPlan()), (slice(8, 11), slice(0, 1), second)]
    bench.context.step = bench.builder.build(decode_plans=[], chunk_plans=chunks)
    found = bench.gated(x_TD[None])[0]
    bench.check(found[:6], bench.expected(x_TD[:6], first))
    assert torch.equal(found[6:8], bench.linear(x_TD)[6:8])
    bench.check(found[8:], bench.expected(x_TD[8:], second))


class TestZeroBudget:
    def test_no_step_is_built_at_all(self) -> None:
        bench = Bench([4] * _NUM_ADAPTERS, torch.float32)
        nothing = make_plan(("a0", 4, 0, 1.0))
        assert keys_of(nothing) == ()
        assert bench.builder.build(decode_plans=[], chunk_plans=[(slice(0, 3), slice(0, 1), nothing)]) is None


class TestFaultsStayInTheirRows:
    def test_a_component_that_is_not_a_number_reaches_only_plans_that_name_it(self) -> None:
        bench = Bench([4] * _NUM_ADAPTERS, torch.float32)
        arena = bench.pool.arena(0)
        arena.a_ND[int(bench.pool.rows(RocKey("a1", RocBasis.TRAINED)).of_module(0)[2])] = float("nan")
        arena.b_NO[int(bench.pool.rows(RocKey("a1", RocBasis.TRAINED)).of_module(0)[1])] = float("inf")
        rule = {"num_rocs": 2, "scope": GateScope.PER_ADAPTER, "score": RocScore.ACTIVATION}
        plans = [bench.plan([0], **rule), bench.plan([1, 2], **rule), bench.plan([2, 3, 4], **rule)]
        x_TD = _inputs(3, torch.float32, is_exact=False)
        bench.context.step = bench.builder.build(decode_plans=plans, chunk_plans=[])
        found = bench.gated(x_TD[None])[0]
        assert torch.isfinite(found[[0, 2]]).all()
        assert torch.isnan(found[1]).any()
        bench.check(found[2], bench.expected(x_TD[2:], plans[2])[0])


class TestCaches:
    def test_rows_that_change_owner_are_looked_up_again(self) -> None:
        bench = Bench([4] * _NUM_ADAPTERS, torch.float32)
        plan = bench.plan([3, 6], num_rocs=2, scope=GateScope.PER_ADAPTER, score=RocScore.ACTIVATION)
        x_TD = _inputs(2, torch.float32, is_exact=False)
        bench.builder.build(decode_plans=[plan], chunk_plans=[(slice(1, 2), None, plan)])
        # Adapters 3 and 6 leave and come back in the other order: each now has the other's rows.
        keys = [RocKey("a3", RocBasis.TRAINED), RocKey("a6", RocBasis.TRAINED)]
        bench.pool.release(keys)
        for key in keys:
            bench.pool.retire(key.adapter_id)
        for key in keys:
            rocs = bench.adapters[int(key.adapter_id[1:])]
            adapter = DecomposedAdapter(basis=RocBasis.TRAINED, modules={"m": rocs})
            assert bench.pool.try_acquire([key], {key: bench.pool.sizes_of(adapter, adapter_id=key.adapter_id)})
            bench.pool.write(key, adapter)
            bench.pool.commit(key)
        bench.context.step = bench.builder.build(decode_plans=[plan], chunk_plans=[(slice(1, 2), None, plan)])
        found = bench.gated(x_TD[None])[0]
        bench.check(found, bench.expected(x_TD, plan))
