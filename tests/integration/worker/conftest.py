"""A worker against a registry that keeps its catalogue in memory, over real gRPC."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from safetensors.torch import save

from hilora.adapter import DecomposedAdapter
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc, routing_pb2, worker_pb2_grpc
from services.common.rpc_client import open_channel
from services.common.rpc_server import RpcServer
from services.worker.bootstrap import WorkerService, build_worker
from services.worker.settings import WorkerSettings
from tests.builders.models import linear_shapes, make_adapter, save_base

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
_Event = registry_pb2.CatalogEvent


class InMemoryRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Snapshot, watch and components; files are whatever the test says."""

    def __init__(self) -> None:
        self.generation = 0
        self.entries: dict[str, registry_pb2.CatalogEntry] = {}
        self.files: dict[str, bytes] = {}
        self.num_fetches = 0
        self.num_snapshots = 0
        self.may_fetch = asyncio.Event()
        self.may_fetch.set()
        self._watchers: list[asyncio.Queue[_Event | None]] = []

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    def publish(
        self, name: str, adapter: DecomposedAdapter, *, revision: str = "r1", content: bytes | None = None
    ) -> str:
        adapter_id = f"{name}@{revision}"
        tensors = {}
        for path, rocs in adapter.modules.items():
            tensors[f"{path}.roc_a"], tensors[f"{path}.roc_b"] = rocs.a_RD, rocs.b_RO
        written = save(tensors)
        checksum = hashlib.sha256(written).hexdigest()
        self.files[adapter_id] = content or written
        self.generation += 1
        entry = registry_pb2.CatalogEntry(
            adapter_id=adapter_id,
            adapter_name=name,
            lora_rank=adapter.lora_rank,
            catalog_generation=self.generation,
            component_sha256={"svd": checksum, "trained": checksum},
        )
        self.entries[name] = entry
        self.tell(_Event(kind=_Event.KIND_UPSERT, catalog_generation=self.generation, entry=entry))
        return adapter_id

    def retire(self, name: str) -> None:
        del self.entries[name]
        self.generation += 1
        self.tell(_Event(kind=_Event.KIND_REMOVE, catalog_generation=self.generation, adapter_name=name))

    def tell(self, event: _Event | None) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(event)

    async def GetSnapshot(self, request, context) -> AsyncIterator[registry_pb2.CatalogSnapshotChunk]:
        self.num_snapshots += 1
        assert request.without_samples
        entries = list(self.entries.values())
        for start in range(0, max(1, len(entries)), 2):
            yield registry_pb2.CatalogSnapshotChunk(
                catalog_generation=self.generation, num_entries=len(entries), entries=entries[start : start + 2]
            )

    async def Watch(self, request, context) -> AsyncIterator[_Event]:
        queue: asyncio.Queue[_Event | None] = asyncio.Queue()
        self._watchers.append(queue)
        if request.after_generation != self.generation:
            # Published between the snapshot and this call: as the real registry does when it keeps no history.
            queue.put_nowait(_Event(kind=_Event.KIND_RESYNC, catalog_generation=self.generation))
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._watchers.remove(queue)

    async def FetchComponents(self, request, context) -> AsyncIterator[registry_pb2.ComponentChunk]:
        self.num_fetches += 1
        await self.may_fetch.wait()
        content = self.files.get(request.adapter_id)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        for offset in range(0, len(content), 1000):
            yield registry_pb2.ComponentChunk(
                total_bytes=len(content), offset=offset, data=content[offset : offset + 1000]
            )


async def serve_registry(registry: InMemoryRegistry, *, port: int = 0) -> RpcServer:
    server = RpcServer(
        host="127.0.0.1",
        port=port,
        register=[lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)],
        service_names=[],
    )
    await server.start()
    return server


@dataclass
class Stack:
    """A running worker, its registry, and a stub that talks to the worker."""

    registry: InMemoryRegistry
    registry_server: RpcServer
    worker: WorkerService
    channel: grpc.aio.Channel
    stub: worker_pb2_grpc.WorkerServiceStub
    shapes: dict[str, tuple[int, int]]
    gates_dir: Path
    adapter_ids: dict[str, str] = field(default_factory=dict)

    def plan(self, *names: str, num_rocs: int = 4, generation: int | None = None) -> routing_pb2.RoutingPlan:
        return routing_pb2.RoutingPlan(
            budgets=[
                routing_pb2.RocBudget(
                    adapter_id=self.adapter_ids.get(name, name),
                    adapter_name=name,
                    lora_rank=4,
                    num_rocs=num_rocs,
                    weight=1.0,
                )
                for name in names
            ],
            gate=routing_pb2.GateParameters(
                score=routing_pb2.ROC_SCORE_ACTIVATION,
                scope=routing_pb2.GATE_SCOPE_PER_ADAPTER,
                basis=routing_pb2.ROC_BASIS_SVD,
                eta=1.0,
            ),
            catalog_generation=self.registry.generation if generation is None else generation,
        )


@pytest.fixture
def start_registry() -> Callable[..., Awaitable[RpcServer]]:
    return serve_registry


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "tiny-base"
    save_base(folder, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def shapes(base_folder: Path) -> dict[str, tuple[int, int]]:
    from transformers import AutoModelForCausalLM

    return linear_shapes(AutoModelForCausalLM.from_pretrained(base_folder))


@pytest.fixture
def settings_of(base_folder: Path) -> Callable[..., WorkerSettings]:
    def build(registry_address: str, **changes) -> WorkerSettings:
        return WorkerSettings(
            **{
                "base_model": str(base_folder),
                "registry_address": registry_address,
                "rpc_port": 0,
                "max_num_seqs": 4,
                "max_model_len": 64,
                "roc_pool_bytes": 1 << 20,
                "num_threads": 1,
                **changes,
            }
        )

    return build


@pytest.fixture
async def stack(settings_of, shapes, tmp_path) -> AsyncIterator[Stack]:
    registry = InMemoryRegistry()
    server = await serve_registry(registry)
    adapter_ids = {name: registry.publish(name, make_adapter(shapes, seed=seed)) for seed, name in enumerate("abc")}
    worker = build_worker(settings_of(server.address, gates_dir=tmp_path))
    await worker.start()
    channel = open_channel(worker.rpc_address)
    yield Stack(
        registry=registry,
        registry_server=server,
        worker=worker,
        channel=channel,
        stub=worker_pb2_grpc.WorkerServiceStub(channel),
        shapes=shapes,
        gates_dir=tmp_path,
        adapter_ids=adapter_ids,
    )
    await channel.close()
    await worker.stop(grace_seconds=0)
    registry.tell(None)
    await server.stop(grace_seconds=0)
