from __future__ import annotations

import numpy as np
import pytest
import torch

from hilora.adapter import RocBasis
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.lora.gating.gate_tables import StepTable, plan_table
from services.worker.lora.gating.torch_form import TokenGates
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.engine import make_plan
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "k": (6, 4), "up": (6, 10)}
_CPU = torch.device("cpu")


@pytest.fixture
def pool() -> RocPool:
    modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
    pool = RocPool(modules=modules, capacity_bytes=1 << 16, dtype=torch.float32, device=_CPU)
    for name, rank in {"a": 4, "b": 2, "c": {"q": 3, "up": 6}}.items():
        adapter, key = make_adapter(_SHAPES, rank=rank), RocKey(name, RocBasis.TRAINED)
        assert pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)})
        pool.write(key, adapter)
        pool.commit(key)
    return pool


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.TRAINED)


class TestPlanTable:
    def test_slots_are_the_adapters_components_side_by_side(self, pool) -> None:
        table = plan_table(make_plan(("a", 4, 2, 0.5), ("b", 2, 1, 2.0), eta=0.5), pool)
        assert (table.keys, table.ranks, table.group_sizes) == ((_key("a"), _key("b")), (4, 2), (4, 2))
        assert table.factors_P.tolist() == [0.25] * 4 + [1.0] * 2
        assert table.budgets_MG.tolist() == [[2, 1]] * 3

    def test_budgets_are_scaled_to_each_modules_rank(self, pool) -> None:
        plan = make_plan(("c", 6, 2, 1.0))
        assert plan_table(plan, pool).budgets_MG[:, 0].tolist() == [plan.budgets[0].num_rocs_in(3), 0, 2] == [1, 0, 2]

    def test_a_global_scope_is_one_group_with_the_summed_budget(self, pool) -> None:
        table = plan_table(make_plan(("a", 4, 2, 0.5), ("b", 2, 1, 2.0), scope=GateScope.GLOBAL), pool)
        assert table.group_sizes == (6,)
        assert table.budgets_MG.tolist() == [[3]] * 3

    def test_an_adapter_without_a_budget_takes_no_part(self, pool) -> None:
        table = plan_table(make_plan(("a", 4, 0, 1.0), ("b", 2, 1, 1.0)), pool)
        assert table.keys == (_key("b"),)
        assert table.num_slots == 2


def _step(pool: RocPool, *plans: RoutingPlan, token_plans: list[int] | None = None) -> StepTable:
    places = list(range(len(plans))) if token_plans is None else token_plans
    return StepTable([plan_table(plan, pool) for plan in plans], np.array(places, dtype=np.int32), pool)


class TestStepTable:
    def test_adapters_shared_by_plans_have_one_set_of_columns(self, pool) -> None:
        table = _step(pool, make_plan(("a", 4, 2, 1.0), ("b", 2, 1, 1.0)), make_plan(("b", 2, 2, 1.0)))
        assert table.num_columns == 6
        assert table.columns_of(table.plans[1]).tolist() == [4, 5]
        assert np.array_equal(table.rows_NU[:, 4:], pool.rows(_key("b")).of_modules(np.arange(pool.num_modules)))

    def test_layers_that_no_adapter_targets_take_no_room(self, pool) -> None:
        table = _step(pool, make_plan(("c", 6, 2, 1.0)))
        assert table.place_of == {0: 0, 2: 1}
        assert np.array_equal(table.rows_NU, pool.rows(_key("c")).of_modules(np.array([0, 2])))


class TestTokenGates:
    def _gates(self, table: StepTable, pool: RocPool) -> TokenGates:
        return TokenGates(table, pool, dtype=torch.float32, device=_CPU)

    def test_full_budgets_need_no_choice(self, pool) -> None:
        plans = make_plan(("a", 4, 4, 0.5)), make_plan(("b", 2, 2, 1.0), ("a", 4, 4, 1.0))
        table = self._gates(_step(pool, *plans), pool).of(0)
        assert table is not None
        assert table.gate.kept_TGK is None
        assert table.gate.coefficients_TGS.tolist() == [[[0.5] * 4, [0.0] * 4], [[1.0, 1.0, 0.0, 0.0], [1.0] * 4]]

    def test_padding_points_to_the_zero_row(self, pool) -> None:
        plans = make_plan(("a", 4, 1, 1.0)), make_plan(("b", 2, 1, 1.0), ("a", 4, 3, 1.0))
        table = self._gates(_step(pool, *plans), pool).of(0)
        assert table is not None
        assert table.rows_TGS[0, 1].tolist() == [0, 0, 0, 0]
        assert table.rows_TGS[1, 0].tolist() == [*pool.rows(_key("b")).of_module(0).tolist(), 0, 0]
        assert table.gate.kept_TGK is not None
        assert table.gate.kept_TGK.tolist() == [[[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]]

    def test_a_token_without_a_plan_has_padding_only(self, pool) -> None:
        table = self._gates(_step(pool, make_plan(("a", 4, 1, 1.0)), token_plans=[-1, 0]), pool).of(0)
        assert table is not None
        assert not table.rows_TGS[0].any()
        assert not table.gate.coefficients_TGS[0].any()

    def test_norms_are_asked_for_only_where_they_decide(self, pool) -> None:
        by_activation = make_plan(("a", 4, 2, 1.0))
        by_contribution = make_plan(("a", 4, 2, 1.0), score=RocScore.CONTRIBUTION)
        table = self._gates(_step(pool, by_activation), pool).of(0)
        assert table is not None
        assert table.gate.norm_weights_T11 is None
        mixed = self._gates(_step(pool, by_activation, by_contribution), pool).of(0)
        assert mixed is not None
        assert mixed.gate.norm_weights_T11 is not None
        assert mixed.gate.norm_weights_T11.flatten().tolist() == [0, 1]

    def test_layers_of_equal_budgets_share_their_gate_and_not_their_rows(self, pool) -> None:
        gates = self._gates(_step(pool, make_plan(("a", 4, 2, 1.0))), pool)
        first, second = gates.of(0), gates.of(1)
        assert first is not None
        assert second is not None
        assert first.gate is second.gate
        assert first.rows_TGS.flatten().tolist() == pool.rows(_key("a")).of_module(0).tolist()
        assert second.rows_TGS.flatten().tolist() == pool.rows(_key("a")).of_module(1).tolist()
