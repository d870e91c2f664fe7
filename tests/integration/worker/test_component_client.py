"""Components over the wire from a registry that is mistaken: nothing of it is kept, and not more than it announced."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hilora.adapter import RocBasis
from hilora.errors import RegistryUnavailable
from hilora_rpc.v1 import registry_pb2
from services.common.rpc_client import open_channel
from services.worker.infra.component_client import ComponentClient
from services.worker.infra.component_files import ComponentFiles
from tests.integration.worker.conftest import InMemoryRegistry, serve_registry

_CONTENT = save({"m.roc_a": torch.ones(2, 6), "m.roc_b": torch.ones(2, 4)})
_HALF = len(_CONTENT) // 2
_Chunk = tuple[int, int, bytes]
"""Announced bytes, offset, data."""


class MistakenRegistry(InMemoryRegistry):
    """Sends what it is told to send."""

    def __init__(self, chunks: list[_Chunk]) -> None:
        super().__init__()
        self.chunks = chunks
        self.num_sent = 0

    async def FetchComponents(self, request, context) -> AsyncIterator[registry_pb2.ComponentChunk]:
        for total_bytes, offset, data in self.chunks:
            self.num_sent += 1
            yield registry_pb2.ComponentChunk(total_bytes=total_bytes, offset=offset, data=data)


async def _fetched(registry: MistakenRegistry, folder: Path) -> object:
    server = await serve_registry(registry)
    files = ComponentFiles(folder, capacity_bytes=1 << 20)
    try:
        async with open_channel(server.address) as channel:
            client = ComponentClient(
                channel=channel,
                loop=asyncio.get_running_loop(),
                peer="the registry",
                checksum_of=lambda *_: hashlib.sha256(_CONTENT).hexdigest(),
                files=files,
            )
            return await asyncio.to_thread(client.fetch, "a@1", RocBasis.SVD)
    finally:
        await server.stop(grace_seconds=0)
        files.check_integrity()


class TestComponentClient:
    async def test_chunks_become_components(self, tmp_path) -> None:
        size = len(_CONTENT)
        registry = MistakenRegistry([(size, 0, _CONTENT[:_HALF]), (size, _HALF, _CONTENT[_HALF:])])
        adapter = await _fetched(registry, tmp_path)
        assert adapter.modules["m"].num_rocs == 2

    @pytest.mark.parametrize(
        "chunks",
        [
            [],
            [(0, 0, b"")],
            [(len(_CONTENT), 0, _CONTENT[:_HALF])],
            [(len(_CONTENT), _HALF, _CONTENT[_HALF:]), (len(_CONTENT), 0, _CONTENT[:_HALF])],
            [(len(_CONTENT), 0, _CONTENT[:_HALF]), (len(_CONTENT), 0, _CONTENT[:_HALF])],
            [(10, 0, b"x" * 20)],
            [(10, 0, b"x" * 10), (20, 10, b"x" * 10)],
            [(1 << 40, 0, b"x")],
        ],
    )
    async def test_what_is_not_what_was_announced_is_refused(self, chunks, tmp_path) -> None:
        with pytest.raises(RegistryUnavailable):
            await _fetched(MistakenRegistry(chunks), tmp_path)
        assert not list(tmp_path.iterdir())

    async def test_who_sends_without_end_is_not_listened_to(self, tmp_path) -> None:
        registry = MistakenRegistry([(10, 10 * idx, b"x" * 10) for idx in range(100_000)])
        with pytest.raises(RegistryUnavailable):
            await _fetched(registry, tmp_path)
        assert registry.num_sent < 100_000
