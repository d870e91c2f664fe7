from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from hilora.adapter import RankOneComponents
from services.worker.lora.pool import roc_arena
from services.worker.lora.pool.arena_storage import GrowingStorage, ReservedStorage
from services.worker.lora.pool.host_memory import PageBuffer, copy_serially
from services.worker.lora.pool.roc_arena import ArenaStrategy, ModuleShape, RocArenas
from tests.builders.models import make_adapter

_CPU = torch.device("cpu")


def _rocs(rank: int, in_features: int, out_features: int, seed: int = 0) -> RankOneComponents:
    generator = torch.Generator().manual_seed(seed)
    return RankOneComponents(
        a_RD=torch.randn(rank, in_features, generator=generator),
        b_RO=torch.randn(rank, out_features, generator=generator),
    )


def _storage(kind: str, dtype: torch.dtype, widths: tuple[int, int] = (5, 40_000)):
    if kind == "reserved":
        return ReservedStorage(in_features=widths[0], out_features=widths[1], max_height=12, dtype=dtype)
    storage = GrowingStorage(in_features=widths[0], out_features=widths[1], dtype=dtype, device=_CPU)
    storage.resize(12, None)
    return storage


@pytest.mark.parametrize("kind", ["reserved", "growing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_written_wherever_they_are(kind, dtype) -> None:
    # Wider than one step of a copy, and rows in several runs.
    storage, parts = _storage(kind, dtype), [_rocs(3, 5, 40_000), _rocs(2, 5, 40_000, seed=1)]
    rows = np.array([7, 8, 2, 4, 5])
    storage.back(rows)
    storage.write(rows, parts)
    for name, of_arena in (("a_RD", storage.arena.a_ND), ("b_RO", storage.arena.b_NO)):
        expected = torch.cat([getattr(part, name) for part in parts]).to(dtype)
        assert torch.equal(of_arena[rows.tolist()], expected)
    norms = torch.cat([part.b_RO.double().norm(dim=1) for part in parts])
    torch.testing.assert_close(storage.arena.b_norms_N[rows.tolist()], norms.to(dtype))


class TestReserved:
    def test_memory_is_counted_when_it_is_used_and_given_back(self) -> None:
        storage = _storage("reserved", torch.float32, (mmap.PAGESIZE // 4, mmap.PAGESIZE // 2))
        rows = np.arange(1, 5)
        storage.back(rows)
        storage.back(rows[:2])
        assert storage.num_backed_rows == 4
        storage.write(rows, [_rocs(4, mmap.PAGESIZE // 4, mmap.PAGESIZE // 2)])
        assert storage.discard(np.array([2, 3, 9])) == 2 * 3 * mmap.PAGESIZE
        assert storage.num_backed_rows == 2
        assert not storage.arena.a_ND[[0, 2, 3]].any()
        assert storage.arena.a_ND[[1, 4]].any(dim=1).all()

    def test_rows_that_are_given_up_one_after_another_take_their_common_page_along(self) -> None:
        # Three rows lie in two pages.
        width = mmap.PAGESIZE // 4 * 2 // 3
        storage = ReservedStorage(in_features=width, out_features=width, max_height=13, dtype=torch.float32)
        rows = np.arange(1, 13)
        storage.back(rows)
        storage.write(rows, [_rocs(12, width, width)])
        kept = storage.arena.a_ND[[3, 7]].clone()
        num_bytes = sum(storage.discard(np.array(part)) for part in ([5], [1, 2], [4], [6], [9, 10], [8], [11, 12]))
        assert storage.num_backed_rows == 2
        assert torch.equal(storage.arena.a_ND[[3, 7]], kept)
        # Of eight whole pages, rows 3 and 7 are in two each.
        assert num_bytes == 2 * 4 * mmap.PAGESIZE
        assert not storage.arena.a_ND[[0, 5, 10, 11]].any()

    def test_rows_that_share_a_page_with_others_are_left_alone(self) -> None:
        buffer = PageBuffer(mmap.PAGESIZE, torch.float32)
        buffer.tensor.fill_(1.0)
        assert buffer.discard(1, mmap.PAGESIZE // 4 + 1) == 0
        assert buffer.discard(1, 2 * mmap.PAGESIZE // 4 + 5) == mmap.PAGESIZE
        assert buffer.tensor.sum() == mmap.PAGESIZE - mmap.PAGESIZE // 4


class TestGrowing:
    def test_growing_keeps_rows_and_moving_them_says_where_they_are(self) -> None:
        storage, part = _storage("growing", torch.float32, (5, 7)), _rocs(3, 5, 7)
        storage.write(np.array([2, 5, 9]), [part])
        storage.resize(20, None)
        assert torch.equal(storage.arena.b_NO[[2, 5, 9]], part.b_RO)
        moved_to = np.zeros(20, dtype=np.int64)
        moved_to[[2, 5, 9]] = [1, 2, 3]
        storage.resize(5, moved_to)
        assert storage.height == 5
        assert torch.equal(storage.arena.a_ND[1:4], part.a_RD)
        torch.testing.assert_close(storage.arena.b_norms_N[1:4], part.b_RO.norm(dim=1))


class TestStrategies:
    def test_without_address_space_arenas_grow(self, monkeypatch) -> None:
        def refuse(**_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(roc_arena, "ReservedStorage", refuse)
        modules = [ModuleShape(module_path="q", in_features=6, out_features=4)]
        arenas = RocArenas(modules=modules, capacity_bytes=10_000, dtype=torch.float32, device=_CPU)
        sizes = arenas.sizes_of(make_adapter({"q": (6, 4)}, rank=3), adapter_id="a")
        assert arenas.must_replace(arenas.rows_by_arena([sizes.module_ranks]))

    def test_a_thousand_experts_are_two_arenas(self) -> None:
        modules = [
            ModuleShape(module_path=f"experts.{idx}.{name}", in_features=d, out_features=o)
            for idx in range(500)
            for name, d, o in (("up", 8, 16), ("down", 16, 8))
        ]
        arenas = RocArenas(
            modules=modules,
            capacity_bytes=1 << 20,
            dtype=torch.float32,
            device=_CPU,
            strategy=ArenaStrategy.RESERVED,
        )
        assert len({id(arenas.arena(idx).a_ND) for idx in range(1000)}) == 2


def test_serial_copies_convert_and_fit_any_length() -> None:
    source = torch.randn(100_003)
    target = torch.empty(100_003, dtype=torch.bfloat16)
    copy_serially(target, source)
    assert torch.equal(target, source.bfloat16())
