"""Any sequence of loads, releases, pins and retirements keeps the accounts right, and what was written readable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from hilora.adapter import DecomposedAdapter, RocBasis
from services.worker.lora.pool.roc_arena import ArenaStrategy, ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "v": (6, 4), "up": (6, 10)}
_ROW_BYTES = 4 * (2 * (6 + 4 + 1) + (6 + 10 + 1))
_NAMES = "abcdef"


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.SVD)


class _PoolMachine(RuleBasedStateMachine):
    strategy: ArenaStrategy
    names = st.sampled_from(_NAMES)

    @initialize()
    def build(self) -> None:
        modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
        self.pool = RocPool(
            modules=modules,
            capacity_bytes=8 * _ROW_BYTES,
            dtype=torch.float32,
            device=torch.device("cpu"),
            strategy=self.strategy,
        )
        self.references = dict.fromkeys(_NAMES, 0)
        self.adapters: dict[str, DecomposedAdapter] = {}
        self.unwritten: set[str] = set()

    @rule(name=names, ranks=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4)), seed=st.integers(0, 9))
    def reserve(self, name, ranks, seed) -> None:
        if self.pool.is_known(_key(name)):
            return
        adapter = make_adapter(_SHAPES, rank=dict(zip(_SHAPES, ranks, strict=True)), seed=seed)
        sizes = self.pool.sizes_of(adapter, adapter_id=name)
        before = self.pool.used_bytes
        if self.pool.try_acquire([_key(name)], {_key(name): sizes}):
            self.references[name] = 1
            self.adapters[name] = adapter
            self.unwritten.add(name)
        else:
            # Nothing is taken that was not asked for; others may have been evicted for a reservation that must wait.
            assert self.pool.used_bytes <= before

    @rule(name=names)
    def write(self, name) -> None:
        if name in self.unwritten:
            self.unwritten.discard(name)
            self.pool.write(_key(name), self.adapters[name])
            self.pool.commit(_key(name))

    @rule(name=names)
    def abandon(self, name) -> None:
        if name in self.unwritten:
            self.unwritten.discard(name)
            self.references[name] = 0
            self.pool.abandon(_key(name))

    @rule(name=names)
    def acquire(self, name) -> None:
        if self.pool.try_acquire([_key(name)], {}):
            self.references[name] += 1

    @rule(name=names)
    def release(self, name) -> None:
        if self.references[name]:
            self.references[name] -= 1
            self.pool.release([_key(name)])

    @rule(name=names, is_pinned=st.booleans())
    def pin(self, name, is_pinned) -> None:
        if self.pool.is_committed([_key(name)]):
            self.pool.pin(_key(name), is_pinned=is_pinned)

    @rule(name=names)
    def retire(self, name) -> None:
        before = self.pool.used_bytes
        freed = self.pool.retire(name)
        assert before - self.pool.used_bytes == freed.now
        assert freed.now == 0 or self.references[name] == 0
        assert (freed.later > 0) == self.pool.is_known(_key(name))

    @rule(name=names)
    def readmit(self, name) -> None:
        self.pool.readmit(name)

    @rule(name=names)
    def drain(self, name) -> None:
        if not self.pool.is_known(_key(name)):
            sizes = self.pool.sizes_of(make_adapter(_SHAPES, rank=3), adapter_id=name)
            self.pool.drain([_key(name)], {_key(name): sizes})

    @rule()
    def stop_draining(self) -> None:
        self.pool.stop_draining()

    @rule()
    def trim(self) -> None:
        self.pool.trim()

    @invariant()
    def accounts(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        for name, count in self.references.items():
            assert self.pool.num_references(_key(name)) == count
            assert count == 0 or self.pool.is_known(_key(name))

    @invariant()
    def contents(self) -> None:
        if not hasattr(self, "pool"):
            return
        for key in self.pool.resident_keys():
            table = self.pool.rows(key)
            for idx, path in enumerate(_SHAPES):
                rocs = self.adapters[key.adapter_id].modules.get(path)
                rank = self.pool.module_ranks(key)[idx]
                assert rank == (0 if rocs is None else rocs.num_rocs)
                if rocs is not None:
                    rows = table.of_module(idx).tolist()
                    assert torch.equal(self.pool.arena(idx).a_ND[rows], rocs.a_RD)
                    assert torch.equal(self.pool.arena(idx).b_NO[rows], rocs.b_RO)


@pytest.mark.parametrize("strategy", ArenaStrategy)
def test_any_sequence(strategy) -> None:
    machine = type("PoolMachine", (_PoolMachine,), {"strategy": strategy})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))
