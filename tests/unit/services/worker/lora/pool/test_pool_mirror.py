"""Two pools of which one does what the other did."""

from __future__ import annotations

import random

import pytest
import torch

from hilora.adapter import RocBasis
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.pool_mirror import MirrorChange, PoolFollower, PoolLeader
from services.worker.lora.pool.roc_arena import ArenaStrategy, ModuleShape
from services.worker.lora.pool.roc_pool import RocPool
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 8), "k": (6, 8), "down": (10, 6)}
_MODULES = [
    ModuleShape(module_path=path, in_features=num_in, out_features=num_out)
    for path, (num_in, num_out) in _SHAPES.items()
]
_CPU = torch.device("cpu")
_ADAPTERS = {
    f"a{idx}": make_adapter(_SHAPES, rank={"q": 1 + idx % 3, "k": 2, "down": idx % 2 * 3}, seed=idx) for idx in range(6)
}


def _pool(strategy: ArenaStrategy) -> RocPool:
    return RocPool(modules=_MODULES, capacity_bytes=1200, dtype=torch.float32, device=_CPU, strategy=strategy)


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.TRAINED)


def _bring(pool: RocPool, name: str) -> bool:
    key, adapter = _key(name), _ADAPTERS[name]
    is_new = not pool.is_known(key)
    if not pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)}):
        return False
    if is_new:
        pool.write(key, adapter)
        pool.commit(key)
    return True


class _Pair:
    """A leader and a follower, with what goes from one to the other."""

    def __init__(self, strategy: ArenaStrategy = ArenaStrategy.GROWING) -> None:
        self.pools = (_pool(strategy), _pool(strategy))
        self.leader = PoolLeader(self.pools[0], _MODULES, dtype=torch.float32, device=_CPU)
        self.follower = PoolFollower(self.pools[1], _MODULES, dtype=torch.float32, device=_CPU)

    def mirror(self, *names: str) -> MirrorChange:
        change = self.leader.change_for([_key(name) for name in names])
        sent: list[torch.Tensor] = []
        self.leader.enact(change, lambda tensor: sent.append(tensor.clone()))
        self.follower.enact(change, lambda tensor: tensor.copy_(sent.pop(0)))
        assert not sent
        for pool in self.pools:
            pool.check_integrity()
        return change

    def assert_equal(self, name: str) -> None:
        key = _key(name)
        rows = [pool.rows(key) for pool in self.pools]
        assert self.pools[0].module_ranks(key) == self.pools[1].module_ranks(key)
        for module_idx in range(len(self.pools[0].module_ranks(key))):
            for field in ("a_ND", "b_NO", "b_norms_N"):
                one, other = (
                    getattr(pool.arena(module_idx), field)[table.of_module(module_idx).tolist()]
                    for pool, table in zip(self.pools, rows, strict=True)
                )
                assert torch.equal(one, other)


class TestArrivals:
    def test_values_come_once(self) -> None:
        pair = _Pair()
        for name in ("a0", "a1"):
            assert _bring(pair.pools[0], name)
        assert [arrival.key.adapter_id for arrival in pair.mirror("a1", "a0").arrivals] == ["a1", "a0"]
        pair.assert_equal("a0")
        pair.assert_equal("a1")
        assert pair.mirror("a0", "a1") == MirrorChange()

    def test_what_the_leader_lost_leaves_and_may_come_again(self) -> None:
        pair = _Pair()
        assert _bring(pair.pools[0], "a2")
        pair.mirror("a2")
        pair.pools[0].release([_key("a2")])
        pair.pools[0].retire("a2")
        assert pair.mirror().departures == (_key("a2"),)
        assert pair.pools[1].used_bytes == 0
        pair.pools[0].readmit("a2")
        assert _bring(pair.pools[0], "a2")
        pair.mirror("a2")
        pair.assert_equal("a2")
        pair.pools[0].release([_key("a2")])
        assert pair.pools[1].is_committed([_key("a2")])


@pytest.mark.parametrize("strategy", list(ArenaStrategy))
@pytest.mark.parametrize("seed", range(4))
def test_there_is_always_room_for_what_the_leader_has(seed, strategy) -> None:
    rng = random.Random(seed)
    pair = _Pair(strategy)
    held: list[str] = []
    for _ in range(80):
        action = rng.random()
        if action < 0.5:
            name = rng.choice(list(_ADAPTERS))
            if _bring(pair.pools[0], name):
                held.append(name)
        elif action < 0.8 and held:
            pair.pools[0].release([_key(held.pop(rng.randrange(len(held))))])
        elif action < 0.9:
            name = rng.choice(list(_ADAPTERS))
            if name not in held:
                pair.pools[0].retire(name)
                pair.pools[0].readmit(name)
        pair.pools[0].trim()
        if rng.random() < 0.6:
            pair.mirror(*dict.fromkeys(held))
            for name in held:
                pair.assert_equal(name)
            assert pair.pools[1].used_bytes <= pair.pools[0].used_bytes
