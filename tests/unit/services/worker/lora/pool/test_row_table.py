"""Rows of an adapter: what is found, and what it costs to know it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilora.adapter import RocBasis
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.lora.pool.row_table import RankLayouts, RowTable
from tests.builders.models import make_adapter


def _table(*module_ranks: int, layouts: RankLayouts | None = None) -> RowTable:
    return RowTable.made((layouts or RankLayouts()).of(module_ranks), np.arange(1, sum(module_ranks) + 1))


class TestRowTable:
    def test_layers_find_their_own_rows(self) -> None:
        table = _table(2, 0, 3)
        assert [table.of_module(module_idx).tolist() for module_idx in range(3)] == [[1, 2], [], [3, 4, 5]]

    @pytest.mark.parametrize(("module_idxs", "expected"), [([2, 0], [[3, 4, 5], [1, 2, 0]]), ([1], [[0, 0, 0]])])
    def test_row_0_stands_where_a_layer_has_fewer(self, module_idxs, expected) -> None:
        assert _table(2, 0, 3).of_modules(np.array(module_idxs)).tolist() == expected

    def test_an_adapter_without_components_has_no_rows(self) -> None:
        assert _table(0, 0).of_modules(np.array([0, 1])).shape == (2, 0)

    def test_nobody_can_change_it(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            _table(2).of_module(0)[0] = 7

    def test_adapters_of_one_kind_share_their_layout_while_one_of_them_is_there(self) -> None:
        layouts = RankLayouts()
        first, second = _table(2, 1, layouts=layouts), _table(2, 1, layouts=layouts)
        assert first.layout is second.layout
        assert _table(1, 2, layouts=layouts).layout is not first.layout
        del first, second
        assert not [ranks for ranks in layouts._layouts if ranks == (2, 1)]


class TestBytes:
    def test_an_adapter_of_two_layers_costs_the_same_however_many_the_model_has(self) -> None:
        for num_modules in (2, 3000):
            shapes = {f"m{module_idx}": (6, 4) for module_idx in range(num_modules)}
            modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in shapes.items()]
            pool = RocPool(modules=modules, capacity_bytes=1 << 20, dtype=torch.float32, device=torch.device("cpu"))
            assert pool.stats().table_bytes == 0
            costs: list[int] = []
            for name in "abc":
                key = RocKey(name, RocBasis.SVD)
                adapter = make_adapter({path: shapes[path] for path in ("m0", "m1")}, rank=8)
                before = pool.stats().table_bytes
                assert pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)})
                costs.append(pool.stats().table_bytes - before)
            # The first of its kind brings the layout, by module.
            assert costs == [costs[0], 64, 64]
            assert costs[0] == 64 + 4 * (num_modules + 1) + 8 * num_modules
