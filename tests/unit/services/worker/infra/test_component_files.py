"""Reading component files, and keeping them in host memory."""

from __future__ import annotations

import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import InvalidAdapter, RegistryUnavailable
from services.worker.infra.component_cache import ComponentCache
from services.worker.infra.component_client import parse_components
from tests.builders.components import InMemoryComponentSource
from tests.builders.models import make_adapter

_SHAPES = {"model.q_proj": (6, 4), "model.up_proj": (6, 10)}


def _assert_same(found: DecomposedAdapter, expected: DecomposedAdapter) -> None:
    assert list(found.modules) == list(expected.modules)
    for path, rocs in expected.modules.items():
        assert torch.equal(found.modules[path].a_RD, rocs.a_RD)
        assert torch.equal(found.modules[path].b_RO, rocs.b_RO)


def _parse(content: bytes):
    return parse_components(content, basis=RocBasis.SVD, adapter_id="a@1")


def _tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"m.roc_a": torch.ones(2, 6), "m.roc_b": torch.ones(2, 4), **changes}


def _raw(dtype: str, num_bytes: int) -> bytes:
    """Safetensors of a type that torch cannot write."""
    entry = {"dtype": dtype, "shape": [2, 2]}
    header = json.dumps(
        {
            "m.roc_a": {**entry, "data_offsets": [0, num_bytes]},
            "m.roc_b": {**entry, "data_offsets": [num_bytes, 2 * num_bytes]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2 * num_bytes)


class TestParse:
    def test_pairs_become_components(self) -> None:
        adapter = make_adapter(_SHAPES, rank=3)
        tensors = {}
        for path, rocs in adapter.modules.items():
            tensors |= {f"{path}.roc_a": rocs.a_RD, f"{path}.roc_b": rocs.b_RO}
        read = _parse(save(tensors))
        assert read.basis is RocBasis.SVD
        assert set(read.modules) == set(_SHAPES)
        for path, rocs in adapter.modules.items():
            assert torch.equal(read.modules[path].a_RD, rocs.a_RD)
            assert torch.equal(read.modules[path].b_RO, rocs.b_RO)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not safetensors at all",
            save(_tensors())[:-5],
            struct.pack("<Q", 1 << 60) + b"{}",
            save({"m.roc_a": torch.ones(2, 6)}),
            save({"m.roc_b": torch.ones(2, 4)}),
            save({"m.weight": torch.ones(2, 6)}),
            save(_tensors(**{"m.roc_b": torch.ones(3, 4)})),
            save(_tensors(**{"m.roc_b": torch.ones(8)})),
            save(_tensors(**{"m.roc_a": torch.ones(2, 6, dtype=torch.int64)})),
            struct.pack("<Q", 2) + json.dumps({}).encode(),
            _raw("F8_E8M0", 4),
            _raw("F4", 2),
            save({"m.roc_a": torch.ones(0, 6), "m.roc_b": torch.ones(0, 4)}),
            save(_tensors(**{"m.roc_a": torch.full((2, 6), float("nan"))})),
            save(_tensors(**{"m.roc_b": torch.full((2, 4), float("inf"))})),
        ],
    )
    def test_anything_else_is_refused(self, content) -> None:
        with pytest.raises(InvalidAdapter) as caught:
            _parse(content)
        assert caught.value.code == "malformed_components"


class TestCache:
    def _cache(self, num_adapters: int) -> tuple[ComponentCache, InMemoryComponentSource]:
        source = InMemoryComponentSource({name: make_adapter(_SHAPES, rank=2) for name in "abc"})
        num_bytes = 4 * 2 * sum(d + o for d, o in _SHAPES.values())
        return ComponentCache(source, capacity_bytes=num_adapters * num_bytes), source

    def test_asks_once(self) -> None:
        cache, source = self._cache(2)
        for _ in range(2):
            _assert_same(cache.fetch("a", RocBasis.SVD), source.adapters["a"])
        assert source.num_fetches == 1
        assert (cache.stats().num_hits, cache.stats().num_misses) == (1, 1)

    def test_bases_are_kept_apart(self) -> None:
        cache, source = self._cache(2)
        cache.fetch("a", RocBasis.SVD)
        cache.fetch("a", RocBasis.TRAINED)
        assert source.num_fetches == 2

    def test_the_least_used_leaves(self) -> None:
        cache, source = self._cache(2)
        for name in "abac":
            cache.fetch(name, RocBasis.SVD)
        assert source.num_fetches == 3
        cache.fetch("a", RocBasis.SVD)
        assert source.num_fetches == 3
        cache.fetch("b", RocBasis.SVD)
        assert source.num_fetches == 4

    def test_what_is_larger_than_the_cache_passes_through(self) -> None:
        cache, source = self._cache(0)
        assert cache.fetch("a", RocBasis.SVD) is source.adapters["a"]
        assert cache.used_bytes == 0

    def test_the_type_of_the_device_halves_it(self) -> None:
        source = InMemoryComponentSource({"a": make_adapter(_SHAPES, rank=2)})
        cache = ComponentCache(source, capacity_bytes=1 << 20, dtype=torch.bfloat16)
        adapter = cache.fetch("a", RocBasis.SVD)
        assert cache.used_bytes == 2 * 2 * sum(d + o for d, o in _SHAPES.values())
        for path, rocs in source.adapters["a"].modules.items():
            assert torch.equal(adapter.modules[path].a_RD, rocs.a_RD.bfloat16())
            assert torch.equal(adapter.modules[path].b_RO, rocs.b_RO.bfloat16())

    def test_what_left_the_catalogue_while_it_was_fetched_is_not_kept(self) -> None:
        current = {"a"}
        source = InMemoryComponentSource({"a": make_adapter(_SHAPES, rank=2)})
        source.gate.clear()
        cache = ComponentCache(source, capacity_bytes=1 << 20, is_current=current.__contains__)
        with ThreadPoolExecutor(1) as executor:
            fetch = executor.submit(cache.fetch, "a", RocBasis.SVD)
            while source.num_fetches == 0:
                time.sleep(0.001)
            current.discard("a")
            cache.forget("a")
            source.gate.set()
            _assert_same(fetch.result(), source.adapters["a"])
        assert cache.used_bytes == 0

    def test_forgetting_frees_its_bytes(self) -> None:
        cache, source = self._cache(3)
        cache.fetch("a", RocBasis.SVD)
        held_bytes = cache.used_bytes
        assert held_bytes == 4 * 2 * sum(d + o for d, o in _SHAPES.values())
        assert (cache.forget("a"), cache.forget("never")) == (held_bytes, 0)
        assert cache.used_bytes == 0
        cache.check_integrity()
        cache.fetch("a", RocBasis.SVD)
        assert source.num_fetches == 2

    def test_only_what_is_kept_counts_as_held(self) -> None:
        source = InMemoryComponentSource({"a": make_adapter(_SHAPES, rank=2), "large": make_adapter(_SHAPES, rank=9)})
        source.adapters["gone"] = source.adapters["a"]
        num_bytes = 4 * 2 * sum(d + o for d, o in _SHAPES.values())
        cache = ComponentCache(source, capacity_bytes=num_bytes, is_current=lambda adapter_id: adapter_id != "gone")
        source.faults["failing"] = RegistryUnavailable("away")
        for name in ("a", "large", "gone"):
            cache.fetch(name, RocBasis.SVD)
        with pytest.raises(RegistryUnavailable):
            cache.fetch("failing", RocBasis.SVD)
        assert set(cache._eviction._held) == set(cache._eviction._uses) == {("a", RocBasis.SVD)}

    def test_layouts_are_shared_and_leave_with_their_adapters(self) -> None:
        source = InMemoryComponentSource({str(rank): make_adapter(_SHAPES, rank=rank) for rank in range(1, 9)})
        source.adapters["8 too"] = source.adapters["8"]
        cache = ComponentCache(source, capacity_bytes=2 * 4 * 8 * sum(d + o for d, o in _SHAPES.values()))
        for name in source.adapters:
            cache.fetch(name, RocBasis.SVD)
        held = list(cache._adapters.values())
        assert len(cache._layouts) == len({id(components.layout) for components in held}) < len(held)

    def test_a_failure_is_not_remembered(self) -> None:
        cache, source = self._cache(2)
        source.faults["a"] = RegistryUnavailable("away")
        with pytest.raises(RegistryUnavailable):
            cache.fetch("a", RocBasis.SVD)
        source.faults.clear()
        _assert_same(cache.fetch("a", RocBasis.SVD), source.adapters["a"])
