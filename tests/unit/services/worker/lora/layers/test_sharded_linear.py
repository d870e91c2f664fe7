"""A gated layer over shards computes the parts of what the whole layer computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hilora.adapter import RocBasis
from services.worker.lora.gating.batch_plan import RocContext, StepRocsBuilder
from services.worker.lora.layers.gated_linear import GatedLinear
from services.worker.lora.layers.sharded_linear import ShardedGatedLinear
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocPool
from tests.builders.engine import make_plan
from tests.builders.models import make_adapter

_IN, _OUT, _SIZE = 8, 12, 2
_CPU = torch.device("cpu")
_PLAN = make_plan(("a", 3, 2, 0.7))


class _Exchange:
    """The processes as one of them sees them; what the others would send is known beforehand."""

    def __init__(self, rank: int, whole_TD: torch.Tensor) -> None:
        self.rank = rank
        self.size = _SIZE
        self.num_gathers = 0
        self._whole_TD = whole_TD

    def gather_columns(self, part_TD: torch.Tensor) -> torch.Tensor:
        self.num_gathers += 1
        assert torch.equal(part_TD, self._whole_TD.chunk(_SIZE, dim=1)[self.rank])
        return self._whole_TD


class _Whole(nn.Module):
    """Stands for a shard whose output was summed up, or gathered, by hooks of its own."""

    def __init__(self, y_TO: torch.Tensor) -> None:
        super().__init__()
        self._y_TO = y_TO

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._y_TO.clone().view(*x.shape[:-1], -1)


@pytest.fixture
def pool() -> RocPool:
    module = ModuleShape(module_path="m", in_features=_IN, out_features=_OUT)
    pool = RocPool(modules=[module], capacity_bytes=1 << 16, dtype=torch.float64, device=_CPU)
    key, adapter = RocKey("a", RocBasis.TRAINED), make_adapter({"m": (_IN, _OUT)}, rank=3)
    assert pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id="a")})
    pool.write(key, adapter)
    pool.commit(key)
    return pool


@pytest.fixture
def context(pool) -> RocContext:
    context = RocContext()
    builder = StepRocsBuilder(pool, dtype=torch.float64, device=_CPU)
    # The first and the last row have no plan.
    context.step = builder.build(decode_plans=[], chunk_plans=[(slice(1, 4), None, _PLAN)])
    return context


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(_IN, _OUT, dtype=torch.float64).requires_grad_(requires_grad=False)


@pytest.fixture
def x_TD() -> torch.Tensor:
    return torch.randn(5, _IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected_TO(linear, context, x_TD) -> torch.Tensor:
    gated = GatedLinear(linear, module_idx=0, context=context, is_output_embedding=False)
    y_TO = gated(x_TD[None])[0]
    assert not torch.allclose(y_TO[2], linear(x_TD)[2])
    return y_TO


def _sharded(layer: nn.Module, context: RocContext, exchange: _Exchange) -> ShardedGatedLinear:
    return ShardedGatedLinear(
        layer,
        module_idx=0,
        context=context,
        is_output_embedding=False,
        in_features=_IN,
        out_features=_OUT,
        exchange=exchange,
    )


@pytest.mark.parametrize("rank", range(_SIZE))
class TestParts:
    def test_by_out_features(self, linear, context, x_TD, expected_TO, rank) -> None:
        shard = nn.Linear(_IN, _OUT // _SIZE, dtype=torch.float64).requires_grad_(requires_grad=False)
        shard.weight.copy_(linear.weight.chunk(_SIZE)[rank])
        shard.bias.copy_(linear.bias.chunk(_SIZE)[rank])
        exchange = _Exchange(rank, x_TD)
        found = _sharded(shard, context, exchange)(x_TD[None])[0]
        torch.testing.assert_close(found, expected_TO.chunk(_SIZE, dim=1)[rank])
        assert exchange.num_gathers == 0

    def test_by_in_features(self, linear, context, x_TD, expected_TO, rank) -> None:
        exchange = _Exchange(rank, x_TD)
        layer = _sharded(_Whole(linear(x_TD)), context, exchange)
        torch.testing.assert_close(layer(x_TD.chunk(_SIZE, dim=1)[rank][None])[0], expected_TO)
        assert exchange.num_gathers == 1

    def test_whole_output(self, linear, context, x_TD, expected_TO, rank) -> None:
        exchange = _Exchange(rank, x_TD)
        torch.testing.assert_close(_sharded(_Whole(linear(x_TD)), context, exchange)(x_TD[None])[0], expected_TO)
        assert exchange.num_gathers == 0

    def test_nothing_is_gathered_for_a_step_without_components_here(self, linear, context, x_TD, rank) -> None:
        exchange = _Exchange(rank, x_TD)
        layer = _sharded(_Whole(linear(x_TD)), context, exchange)
        part_TD = x_TD.chunk(_SIZE, dim=1)[rank]
        context.step = None
        torch.testing.assert_close(layer(part_TD), linear(x_TD))
        assert exchange.num_gathers == 0
