"""A large snapshot: read ahead in threads, sent in order."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing

import numpy as np
import pytest

from hilora.character_grams import SampleGrams
from hilora.errors import UnknownAdapter
from hilora_rpc.v1 import registry_pb2
from services.registry.catalog_entry import CatalogEntry, CatalogSnapshot
from services.registry.entrypoints.rpc import RegistryServicer
from tests.builders.registry_values import an_entry

NUM = 150


class Catalog:
    """Reads as slowly as a disk, every third entry more slowly than the others."""

    def __init__(self) -> None:
        entries = (an_entry(f"adapter-{number:03}", generation=number + 1, seed=number) for number in range(NUM))
        self.entries = {entry.adapter_name: entry for entry in entries}
        self.num_read = 0
        self.most_at_once = 0
        self.lost: frozenset[str] = frozenset()
        self._at_once = 0
        self._lock = threading.Lock()

    async def snapshot(self) -> CatalogSnapshot:
        return CatalogSnapshot(catalog_generation=NUM, entries=self.entries, aliases={})

    def stored_samples(self, one: CatalogEntry):
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.num_read += 1
        time.sleep(0.003 if one.catalog_generation % 3 == 0 else 0.001)
        with self._lock:
            self._at_once -= 1
        if one.adapter_name in self.lost:
            raise UnknownAdapter("It is gone.", code="unknown_profile")
        return np.full((3, 4096), one.catalog_generation, dtype=np.float32), SampleGrams.of(("a", "b", "c"))


@pytest.fixture
def catalog():
    return Catalog()


@pytest.fixture
def servicer(catalog):
    return RegistryServicer(
        catalog=catalog, jobs=None, intake=None, cancellation=None, orders=None, access=None, heartbeat_seconds=1.0
    )


def stream(servicer, **options):
    return servicer.GetSnapshot(registry_pb2.GetSnapshotRequest(**options), None)


class TestSnapshot:
    async def test_every_entry_comes_once_in_its_order_with_its_own_samples(self, servicer, catalog):
        chunks = [chunk async for chunk in stream(servicer)]
        entries = [one for chunk in chunks for one in chunk.entries]

        assert len(chunks) > 1
        assert [one.adapter_name for one in entries] == list(catalog.entries)
        for one in entries:
            samples_ME = np.frombuffer(one.sample_embeddings, dtype="<f4")
            assert set(samples_ME.tolist()) == {float(one.catalog_generation)}

    async def test_the_next_entries_are_read_while_these_are_sent(self, servicer, catalog):
        assert [chunk async for chunk in stream(servicer)]
        assert catalog.most_at_once == 2

    async def test_without_samples_nothing_is_read(self, servicer, catalog):
        (chunk,) = [chunk async for chunk in stream(servicer, without_samples=True)]
        assert len(chunk.entries) == NUM
        assert catalog.num_read == 0

    async def test_lost_samples_of_one_do_not_keep_the_others(self, servicer, catalog):
        catalog.lost = frozenset({"adapter-040"})
        entries = [one async for chunk in stream(servicer) for one in chunk.entries]
        assert [one.adapter_name for one in entries if not one.num_samples] == ["adapter-040"]
        assert len(entries) == NUM

    async def test_an_error_ends_the_stream_and_nothing_goes_on(self, servicer, catalog, monkeypatch):
        def broken(one):
            raise RuntimeError("the disk is on fire")

        monkeypatch.setattr(catalog, "stored_samples", broken)
        with pytest.raises(RuntimeError, match="on fire"):
            assert [chunk async for chunk in stream(servicer)]
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_a_follower_that_leaves_leaves_no_reads_behind(self, servicer, catalog):
        async with aclosing(stream(servicer)) as chunks:
            await anext(chunks)
        await asyncio.sleep(0.2)
        assert catalog.num_read < NUM
        assert asyncio.all_tasks() == {asyncio.current_task()}
