from __future__ import annotations

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.lora.gate_tables import TableBuilder
from services.worker.lora.roc_arena import ModuleShape
from services.worker.lora.roc_pool import RocKey, RocPool
from tests.builders.engine import make_plan
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "k": (6, 4), "up": (6, 10)}


@pytest.fixture
def pool() -> RocPool:
    modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
    pool = RocPool(modules=modules, capacity_bytes=1 << 16, dtype=torch.float32, device=torch.device("cpu"))
    for name, rank in {"a": 4, "b": 2, "c": {"q": 3, "up": 6}}.items():
        adapter, key = make_adapter(_SHAPES, rank=rank), RocKey(name, RocBasis.TRAINED)
        assert pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)})
        pool.write(key, adapter)
        pool.commit(key)
    return pool


def _tables(pool: RocPool, *plans: RoutingPlan):
    return TableBuilder(plans, pool, dtype=torch.float32, device=torch.device("cpu")).tables(pool.num_modules)


class TestTables:
    def test_modules_of_equal_ranks_share_a_table(self, pool) -> None:
        q, k, up = _tables(pool, make_plan(("a", 4, 2, 1.0), ("b", 2, 1, 1.0)))
        assert q is k is up

    def test_a_module_that_no_adapter_targets_has_none(self, pool) -> None:
        q, k, up = _tables(pool, make_plan(("c", 6, 2, 1.0)))
        assert q is not None and k is None and up is not None

    def test_budgets_are_scaled_to_each_modules_rank(self, pool) -> None:
        plan = make_plan(("c", 6, 2, 1.0))
        q, _, up = _tables(pool, plan)
        assert (q.num_slots, q.gate.num_kept) == (3, plan.budgets[0].num_rocs_in(3)) == (3, 1)
        assert (up.num_slots, up.gate.num_kept) == (6, 2)

    def test_full_budgets_need_no_choice(self, pool) -> None:
        q, _, _ = _tables(pool, make_plan(("a", 4, 4, 0.5)), make_plan(("b", 2, 2, 1.0), ("a", 4, 4, 1.0)))
        assert q.gate.kept_TGK is None
        assert q.gate.coefficients_TGS.tolist() == [[[0.5] * 4, [0.0] * 4], [[1.0, 1.0, 0.0, 0.0], [1.0] * 4]]

    def test_padding_points_to_the_zero_row(self, pool) -> None:
        q, _, _ = _tables(pool, make_plan(("a", 4, 1, 1.0)), make_plan(("b", 2, 1, 1.0), ("a", 4, 3, 1.0)))
        rows = q.rows_TGS
        assert rows[0, 1].tolist() == [0, 0, 0, 0]
        assert rows[1, 0].tolist() == [*pool.rows(RocKey("b", RocBasis.TRAINED)), 0, 0]
        assert q.gate.kept_TGK.tolist() == [[[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]]

    def test_a_global_scope_is_one_group_with_the_summed_budget(self, pool) -> None:
        plan = make_plan(("a", 4, 2, 0.5), ("b", 2, 1, 2.0), scope=GateScope.GLOBAL, eta=0.5)
        q, _, _ = _tables(pool, plan)
        assert q.gate.coefficients_TGS.tolist() == [[[0.25] * 4 + [1.0] * 2]]
        assert q.gate.kept_TGK.tolist() == [[[1, 1, 1]]]

    def test_norms_are_asked_for_only_where_they_decide(self, pool) -> None:
        by_activation = make_plan(("a", 4, 2, 1.0))
        by_contribution = make_plan(("a", 4, 2, 1.0), score=RocScore.CONTRIBUTION)
        assert _tables(pool, by_activation)[0].gate.norm_weights_T11 is None
        mixed = _tables(pool, by_activation, by_contribution)[0]
        assert mixed.gate.norm_weights_T11.flatten().tolist() == [0, 1]

    def test_an_adapter_without_a_budget_takes_no_part(self, pool) -> None:
        builder = TableBuilder(
            [make_plan(("a", 4, 0, 1.0), ("b", 2, 1, 1.0))], pool, dtype=torch.float32, device=torch.device("cpu")
        )
        assert builder.keys == (RocKey("b", RocBasis.TRAINED),)
        assert builder.tables(1)[0].rows_TGS.shape == (1, 1, 2)
