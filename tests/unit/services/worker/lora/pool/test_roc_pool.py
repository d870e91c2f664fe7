from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import AdapterShapeMismatch, RocPoolFull
from services.worker.lora.pool.roc_arena import ArenaStrategy, ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "up": (6, 10)}
_ROW_BYTES = 4 * ((6 + 4 + 1) + (6 + 10 + 1))
_CPU = torch.device("cpu")
_strategy = ArenaStrategy.RESERVED


@pytest.fixture(params=ArenaStrategy, autouse=True)
def strategy(request, monkeypatch) -> ArenaStrategy:
    """Every test runs with arenas of both kinds."""
    monkeypatch.setattr(sys.modules[__name__], "_strategy", request.param)
    return request.param


def _pool(num_rows: int = 10, shapes: dict[str, tuple[int, int]] = _SHAPES) -> RocPool:
    modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in shapes.items()]
    capacity_bytes = num_rows * _ROW_BYTES
    return RocPool(modules=modules, capacity_bytes=capacity_bytes, dtype=torch.float32, device=_CPU, strategy=_strategy)


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.SVD)


def _load(pool: RocPool, name: str, adapter: DecomposedAdapter) -> bool:
    key = _key(name)
    if not pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id=name)}):
        return False
    pool.write(key, adapter)
    pool.commit(key)
    return True


def _assert_written(
    pool: RocPool, name: str, adapter: DecomposedAdapter, shapes: dict[str, tuple[int, int]] = _SHAPES
) -> None:
    for idx, path in enumerate(shapes):
        if path in adapter.modules:
            rocs, arena = adapter.modules[path], pool.arena(idx)
            rows = pool.rows(_key(name)).of_module(idx).tolist()
            assert torch.equal(arena.a_ND[rows], rocs.a_RD)
            assert torch.equal(arena.b_NO[rows], rocs.b_RO)
            torch.testing.assert_close(arena.b_norms_N[rows], rocs.b_RO.norm(dim=1))


class TestRows:
    def test_rows_hold_what_was_written_by_module_rank(self) -> None:
        pool, adapter = _pool(), make_adapter(_SHAPES, rank={"q": 2, "up": 3})
        assert _load(pool, "a", adapter)
        rows_MR = pool.rows(_key("a")).of_modules(np.arange(2))
        assert (rows_MR.shape, pool.module_ranks(_key("a"))) == ((2, 3), (2, 3))
        assert rows_MR[0, 2] == 0
        _assert_written(pool, "a", adapter)
        pool.check_integrity()

    def test_modules_of_one_shape_have_rows_of_their_own(self) -> None:
        shapes = {"q": (6, 4), "k": (6, 4), "up": (6, 10)}
        pool, adapter = _pool(shapes=shapes), make_adapter(shapes, rank=2)
        assert _load(pool, "a", adapter)
        _assert_written(pool, "a", adapter, shapes)
        table = pool.rows(_key("a"))
        assert not set(table.of_module(0).tolist()) & set(table.of_module(1).tolist())

    def test_rows_survive_others_coming_and_going(self) -> None:
        pool, adapters = _pool(12), {}
        for turn, name in enumerate("abcdefgh"):
            adapters[name] = make_adapter(_SHAPES, rank={"q": 1 + turn % 3, "up": 4 - turn % 3}, seed=turn)
            assert _load(pool, name, adapters[name])
            if turn % 2:
                pool.release([_key(name)])
                pool.retire(name)
                pool.trim()
                del adapters[name]
            elif turn >= 4:
                gone = next(iter(adapters))
                pool.release([_key(gone)])
                del adapters[gone]
            pool.check_integrity()
            for known, adapter in adapters.items():
                _assert_written(pool, known, adapter)

    def test_adapters_of_few_modules_can_use_the_whole_budget(self, strategy) -> None:
        pool = _pool(10)
        q_bytes = 4 * (6 + 4 + 1)
        num_fitting = pool.capacity_bytes // (2 * q_bytes)
        for turn in range(num_fitting):
            assert _load(pool, f"a{turn}", make_adapter({"q": _SHAPES["q"]}, rank=2))
        assert pool.used_bytes > pool.capacity_bytes - 2 * q_bytes
        for turn in range(num_fitting):
            pool.release([_key(f"a{turn}")])
        # And adapters of other modules then have it instead.
        up_rank = pool.capacity_bytes // (4 * (6 + 10 + 1))
        adapter = make_adapter({"up": _SHAPES["up"]}, rank=up_rank)
        assert _load(pool, "big", adapter)
        _assert_written(pool, "big", adapter)
        pool.check_integrity()

    def test_what_was_derived_from_rows_is_good_while_placements_stay(self, strategy) -> None:
        pool = _pool(12)
        _load(pool, "a", make_adapter(_SHAPES, rank=2))
        placement, rows, arena = pool.placement(_key("a")), pool.rows(_key("a")).rows_P, pool.arena(0)
        _load(pool, "b", make_adapter(_SHAPES, rank=8))
        has_stayed = pool.placement(_key("a")) == placement
        assert has_stayed == (strategy is ArenaStrategy.RESERVED)
        assert (pool.arena(0).a_ND is arena.a_ND) == has_stayed
        assert pool.rows(_key("a")).rows_P.tolist() == rows.tolist()

    def test_tensors_are_not_replaced_under_a_writer(self, strategy) -> None:
        pool, adapter = _pool(12), make_adapter(_SHAPES, rank=2)
        sizes = pool.sizes_of(adapter, adapter_id="x")
        assert pool.try_acquire([_key("a")], {_key("a"): sizes})
        tensors = pool.arena(0).a_ND
        could = pool.try_acquire([_key("b")], {_key("b"): sizes})
        assert could == (strategy is ArenaStrategy.RESERVED)
        assert pool.arena(0).a_ND is tensors
        before = pool.num_changes
        pool.write(_key("a"), adapter)
        pool.commit(_key("a"))
        assert pool.num_changes > before
        assert could or pool.try_acquire([_key("b")], {_key("b"): sizes})

    def test_nobody_is_evicted_before_the_tensors_can_be_replaced(self, strategy) -> None:
        shapes = {"q": (6, 4), "up": (6, 10)}
        pool = _pool(10)
        q_rows = pool.capacity_bytes // (4 * (6 + 4 + 1))
        assert _load(pool, "old", make_adapter({"q": shapes["q"]}, rank=q_rows // 2))
        pool.release([_key("old")])
        writing = make_adapter({"q": shapes["q"]}, rank=q_rows // 4)
        assert pool.try_acquire([_key("writing")], {_key("writing"): pool.sizes_of(writing, adapter_id="x")})
        # Rows that `old` could never give: tensors of the other shape have to grow.
        new = make_adapter({"up": shapes["up"]}, rank=pool.capacity_bytes // 2 // (4 * (6 + 10 + 1)))
        sizes = {_key("new"): pool.sizes_of(new, adapter_id="x")}
        could = pool.try_acquire([_key("new")], sizes)
        assert could == (strategy is ArenaStrategy.RESERVED)
        assert pool.stats().num_evictions == could
        pool.write(_key("writing"), writing)
        pool.commit(_key("writing"))
        assert could or pool.try_acquire([_key("new")], sizes)
        assert pool.stats().num_evictions == 1
        pool.check_integrity()

    def test_rows_of_the_evicted_can_be_had_while_others_are_written(self) -> None:
        pool, adapter = _pool(8), make_adapter(_SHAPES, rank=2)
        for name in "abcd":
            assert _load(pool, name, adapter)
            pool.release([_key(name)])
        for name in "ef":
            assert pool.try_acquire([_key(name)], {_key(name): pool.sizes_of(adapter, adapter_id=name)})
        assert pool.stats().num_evictions == 2

    def test_bytes_are_exact(self) -> None:
        pool = _pool()
        _load(pool, "a", make_adapter(_SHAPES, rank=3))
        assert pool.used_bytes == 3 * _ROW_BYTES
        _load(pool, "b", make_adapter({"q": _SHAPES["q"]}, rank=2))
        assert pool.used_bytes == 3 * _ROW_BYTES + 2 * 4 * 11
        assert pool.retire("a") == (0, 3 * _ROW_BYTES)
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
    def test_the_least_used_goes_first(self) -> None:
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
        _load(pool, "a", make_adapter(_SHAPES, rank=2))
        version = pool.layout_version
        assert pool.try_acquire([_key("a")], {})
        pool.release([_key("a")])
        assert pool.layout_version == version
        pool.release([_key("a")])
        pool.retire("a")
        assert pool.layout_version > version


class TestRetiring:
    def test_while_it_is_written_it_goes_with_the_last_request(self) -> None:
        pool, adapter = _pool(), make_adapter(_SHAPES, rank=2)
        key = _key("a")
        assert pool.try_acquire([key], {key: pool.sizes_of(adapter, adapter_id="a")})
        assert pool.retire("a") == (0, 2 * _ROW_BYTES)
        pool.release([key])
        pool.write(key, adapter)
        pool.commit(key)
        assert (pool.is_known(key), pool.used_bytes) == (False, 0)

    def test_a_request_from_before_does_not_keep_it(self) -> None:
        pool, adapter = _pool(), make_adapter(_SHAPES, rank=2)
        pool.retire("a")
        assert _load(pool, "a", adapter)
        pool.pin(_key("a"))
        pool.release([_key("a")])
        assert not pool.is_known(_key("a"))
        pool.readmit("a")
        assert _load(pool, "a", adapter)
        pool.release([_key("a")])
        assert pool.is_known(_key("a"))

    def test_memory_is_given_back(self) -> None:
        shapes = {"q": (1024, 1024)}
        pool = _pool(500_000, shapes)
        adapter = make_adapter(shapes, rank=64)
        assert pool.reserved_bytes == 0
        for name in "abc":
            _load(pool, name, adapter)
            pool.release([_key(name)])
        assert pool.reserved_bytes >= pool.used_bytes == 3 * 64 * 4 * 2049
        pool.retire("a")
        pool.retire("c")
        pool.trim()
        assert pool.reserved_bytes <= 2 * pool.used_bytes == 2 * 64 * 4 * 2049
        _assert_written(pool, "b", adapter, shapes)


class TestDraining:
    def test_what_is_drained_takes_no_new_requests_and_no_more_than_needed_is(self) -> None:
        pool, adapter = _pool(6), make_adapter(_SHAPES, rank=2)
        for name in "abc":
            _load(pool, name, adapter)
        pool.try_acquire([_key("a")], {})
        pool.try_acquire([_key("b")], {})
        sizes = pool.sizes_of(adapter, adapter_id="x")
        assert not pool.try_acquire([_key("x")], {_key("x"): sizes})
        pool.drain([_key("x")], {_key("x"): sizes})
        # The one with the fewest requests.
        assert not pool.try_acquire([_key("c")], {})
        assert pool.try_acquire([_key("a")], {})
        pool.release([_key("c")])
        assert pool.try_acquire([_key("x")], {_key("x"): sizes})
        pool.stop_draining()
        assert pool.try_acquire([_key("b")], {})

    def test_pinned_adapters_and_its_own_are_not_drained(self) -> None:
        pool, adapter = _pool(6), make_adapter(_SHAPES, rank=2)
        for name in "abc":
            _load(pool, name, adapter)
        pool.pin(_key("a"))
        sizes = pool.sizes_of(adapter, adapter_id="x")
        pool.drain([_key("b"), _key("x")], {_key("x"): sizes})
        assert [pool.try_acquire([_key(name)], {}) for name in "abc"] == [True, True, False]

    def test_pinned_bytes_count_for_what_is_impossible(self) -> None:
        pool = _pool(6)
        _load(pool, "a", make_adapter(_SHAPES, rank=4))
        pool.pin(_key("a"))
        pool.release([_key("a")])
        assert pool.stats().pinned_bytes == 4 * _ROW_BYTES
        with pytest.raises(RocPoolFull):
            _load(pool, "b", make_adapter(_SHAPES, rank=3))
        assert _load(pool, "c", make_adapter(_SHAPES, rank=2))


class TestMisuse:
    def test_releasing_more_often_than_acquiring(self) -> None:
        pool = _pool()
        _load(pool, "a", make_adapter(_SHAPES, rank=2))
        pool.release([_key("a")])
        with pytest.raises(AssertionError):
            pool.release([_key("a")])


class TestDeviceMemoryThatRunsOut:
    @pytest.fixture
    def strategy(self, monkeypatch) -> None:
        monkeypatch.setattr(sys.modules[__name__], "_strategy", ArenaStrategy.GROWING)

    @pytest.mark.parametrize("num_done", [0, 1, 2, 4])
    def test_a_refused_acquisition_leaves_everything_as_it_was(self, monkeypatch, num_done) -> None:
        pool, adapters = _pool(), {name: make_adapter(_SHAPES, rank=2, seed=ord(name)) for name in "ab"}
        assert _load(pool, "a", adapters["a"])
        empty, calls = torch.empty, []

        def scarce(*sizes, **options) -> torch.Tensor:
            calls.append(sizes)
            if len(calls) > num_done:
                raise torch.OutOfMemoryError("no more")
            return empty(*sizes, **options)

        monkeypatch.setattr(torch, "empty", scarce)
        keys = [_key("a"), _key("b")]
        missing = {_key("b"): pool.sizes_of(adapters["b"], adapter_id="b")}
        with pytest.raises(RocPoolFull) as caught:
            pool.try_acquire(keys, missing)
        assert caught.value.code == "device_memory_full"
        assert pool.num_references(_key("a")) == 1
        pool.check_integrity()
        _assert_written(pool, "a", adapters["a"])
        monkeypatch.setattr(torch, "empty", empty)
        assert _load(pool, "b", adapters["b"])
        for name, adapter in adapters.items():
            _assert_written(pool, name, adapter)
