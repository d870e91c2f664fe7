from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import AdapterShapeMismatch, RocPoolFull
from services.worker.lora.roc_arena import ModuleShape
from services.worker.lora.roc_pool import RocKey, RocPool
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "up": (6, 10)}
_ROW_BYTES = 4 * ((6 + 4 + 1) + (6 + 10 + 1))
_CPU = torch.device("cpu")


def _pool(num_rows: int = 10) -> RocPool:
    modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
    return RocPool(modules=modules, capacity_bytes=num_rows * _ROW_BYTES, dtype=torch.float32, device=_CPU)


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.SVD)


def _load(pool: RocPool, name: str, adapter: DecomposedAdapter) -> bool:
    key = _key(name)
    if not pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)}):
        return False
    pool.write(key, adapter)
    pool.commit(key)
    return True


class TestRows:
    def test_rows_hold_what_was_written_by_module_rank(self) -> None:
        pool, adapter = _pool(), make_adapter(_SHAPES, rank={"q": 2, "up": 3})
        assert _load(pool, "a", adapter)
        assert (len(pool.rows(_key("a"))), pool.module_ranks(_key("a"))) == (3, (2, 3))
        for idx, path in enumerate(_SHAPES):
            rocs, arena = adapter.modules[path], pool.arena(idx)
            rows = list(pool.rows(_key("a")))[: rocs.num_rocs]
            assert torch.equal(arena.a_ND[rows], rocs.a_RD)
            assert torch.equal(arena.b_NO[rows], rocs.b_RO)
            torch.testing.assert_close(arena.b_norms_N[rows], rocs.b_RO.norm(dim=1))
        pool.check_integrity()

    def test_bytes_are_exact(self) -> None:
        pool = _pool()
        _load(pool, "a", make_adapter(_SHAPES, rank=3))
        assert pool.used_bytes == 3 * _ROW_BYTES
        _load(pool, "b", make_adapter({"q": _SHAPES["q"]}, rank=2))
        assert pool.used_bytes == 3 * _ROW_BYTES + 2 * 4 * 11
        assert pool.retire("a") == 0
        pool.release([_key("a")])
        assert pool.used_bytes == 2 * 4 * 11

    @pytest.mark.parametrize(
        ("shapes", "code"),
        [
            ({"q": (7, 4)}, "adapter_shape_mismatch"),
            ({"q": (6, 5)}, "adapter_shape_mismatch"),
            ({"v": (6, 4)}, "unknown_target_module"),
        ],
    )
    def test_components_of_another_model_are_refused(self, shapes, code) -> None:
        with pytest.raises(AdapterShapeMismatch) as caught:
            _pool().sizes_of(make_adapter(shapes), adapter_id="a")
        assert caught.value.code == code


class TestEviction:
    def test_the_least_recently_used_goes_first(self) -> None:
        pool = _pool(6)
        for name in ("a", "b"):
            _load(pool, name, make_adapter(_SHAPES, rank=3))
            pool.release([_key(name)])
        assert pool.try_acquire([_key("a")], {})
        pool.release([_key("a")])
        assert _load(pool, "c", make_adapter(_SHAPES, rank=3))
        assert set(pool.resident_keys()) == {_key("a"), _key("c")}

    def test_what_is_referred_to_or_pinned_stays(self) -> None:
        pool = _pool(6)
        _load(pool, "a", make_adapter(_SHAPES, rank=3))
        _load(pool, "b", make_adapter(_SHAPES, rank=3))
        pool.release([_key("b")])
        pool.pin(_key("b"))
        assert not _load(pool, "c", make_adapter(_SHAPES, rank=1))
        pool.pin(_key("b"), is_pinned=False)
        assert _load(pool, "c", make_adapter(_SHAPES, rank=1))
        assert set(pool.resident_keys()) == {_key("a"), _key("c")}

    def test_all_or_none(self) -> None:
        pool = _pool(4)
        adapter = make_adapter(_SHAPES, rank=2)
        _load(pool, "a", adapter)
        sizes = pool.sizes_of(adapter, adapter_id="x")
        assert not pool.try_acquire([_key("a"), _key("b")], {})
        assert _load(pool, "b", adapter)
        assert not pool.try_acquire([_key("a"), _key("c")], {_key("c"): sizes})
        assert (pool.num_references(_key("a")), pool.num_references(_key("c"))) == (1, 0)

    def test_a_plan_never_evicts_its_own_adapters(self) -> None:
        pool = _pool(4)
        adapter = make_adapter(_SHAPES, rank=2)
        for name in ("a", "b"):
            _load(pool, name, adapter)
            pool.release([_key(name)])
        sizes = pool.sizes_of(adapter, adapter_id="x")
        assert pool.try_acquire([_key("a"), _key("c")], {_key("c"): sizes})
        assert pool.is_known(_key("a")) and not pool.is_known(_key("b"))

    def test_what_could_never_fit_is_an_error_not_a_wait(self) -> None:
        pool = _pool(4)
        adapter = make_adapter(_SHAPES, rank=5)
        with pytest.raises(RocPoolFull) as caught:
            _load(pool, "a", adapter)
        assert caught.value.code == "plan_exceeds_roc_pool"
        assert pool.used_bytes == 0

    def test_the_layout_version_tells_when_rows_may_change_hands(self) -> None:
        pool = _pool(4)
        version = pool.layout_version
        _load(pool, "a", make_adapter(_SHAPES, rank=2))
        assert pool.layout_version == version
        pool.release([_key("a")])
        pool.retire("a")
        assert pool.layout_version > version


class TestMisuse:
    def test_releasing_more_often_than_acquiring(self) -> None:
        pool = _pool()
        _load(pool, "a", make_adapter(_SHAPES, rank=2))
        pool.release([_key("a")])
        with pytest.raises(AssertionError):
            pool.release([_key("a")])


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of loads, releases, pins and retirements keeps the accounts right."""

    names = st.sampled_from("abcde")

    @initialize()
    def build(self) -> None:
        self.pool = _pool(8)
        self.references = dict.fromkeys("abcde", 0)

    @rule(name=names, rank=st.integers(1, 4))
    def load(self, name, rank) -> None:
        if not self.pool.is_known(_key(name)) and _load(self.pool, name, make_adapter(_SHAPES, rank=rank)):
            self.references[name] = 1

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
        if self.pool.is_known(_key(name)):
            self.pool.pin(_key(name), is_pinned=is_pinned)

    @rule(name=names)
    def retire(self, name) -> None:
        before = self.pool.used_bytes
        freed = self.pool.retire(name)
        assert before - self.pool.used_bytes == freed
        assert self.references[name] == 0 or freed == 0

    @invariant()
    def accounts(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            for name, count in self.references.items():
                assert self.pool.num_references(_key(name)) == count


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
