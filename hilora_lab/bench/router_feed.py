"""A registry without storage, in a process of its own: `python -m hilora_lab.bench.router_feed '{"num_adapters": N}'`.

It gives routers one snapshot of a synthetic pool and no change after it. A task's statistics lie around the embedding
of its text under the encoder that the router has, so that requests of the benchmark are really routed: plans with
budgets are made, put into headers and sent to the worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from hilora.adapter import adapter_id_of
from hilora.character_grams import GRAM_SCHEME, SampleGrams
from hilora_lab.bench.router_speech import answer_commands, say
from hilora_lab.bench.router_texts import task_name, task_text
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common import event_loop
from services.common.kept_encoders import KEPT_ENCODERS_FOLDER
from services.common.log import configure_logging
from services.common.rpc_server import RpcServer
from services.common.sequence_encoder import DEFAULT_ENCODER, EncoderBackend, SentenceTransformerEncoder

NUM_SAMPLES = 20
"""Of an adapter."""
_SPREAD = 0.6
"""Length of what a sample adds to its task's centre, which has length 1."""
_LORA_RANK = 16
_CREATED_AT = 1_700_000_000.0
_ENTRIES_OF_A_CHUNK = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedOrder:
    """What the process is started with, as JSON."""

    num_adapters: int
    encoder: str = DEFAULT_ENCODER


def synthetic_samples(centers_LE: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings `[L, m, E]` of norm 1 around each adapter's centre."""
    num_adapters, embedding_dim = centers_LE.shape
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_adapters, NUM_SAMPLES, embedding_dim), dtype=np.float32)
    samples = centers_LE[:, None] + _SPREAD * noise / np.float32(embedding_dim**0.5)
    return samples / np.linalg.norm(samples, axis=-1, keepdims=True)


class _Feed(registry_pb2_grpc.RegistryServiceServicer):
    """Snapshot and watch; the rest of the service answers UNIMPLEMENTED."""

    def __init__(self, entries: list[registry_pb2.CatalogEntry]) -> None:
        self._entries = entries

    async def GetSnapshot(  # noqa: N802  (the wire's name)
        self,
        request: registry_pb2.GetSnapshotRequest,  # noqa: ARG002  (gRPC's signature)
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  (the same)
    ) -> AsyncIterator[registry_pb2.CatalogSnapshotChunk]:
        """The pool."""
        for start in range(0, len(self._entries), _ENTRIES_OF_A_CHUNK):
            yield registry_pb2.CatalogSnapshotChunk(
                catalog_generation=len(self._entries),
                num_entries=len(self._entries),
                entries=self._entries[start : start + _ENTRIES_OF_A_CHUNK],
            )

    async def Watch(  # noqa: N802  (the wire's name)
        self,
        request: registry_pb2.WatchRequest,  # noqa: ARG002  (gRPC's signature)
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  (the same)
    ) -> AsyncIterator[registry_pb2.CatalogEvent]:
        """Signs of life."""
        while True:
            yield registry_pb2.CatalogEvent(
                kind=registry_pb2.CatalogEvent.KIND_HEARTBEAT, catalog_generation=len(self._entries)
            )
            await asyncio.sleep(5.0)


def _entries(order: FeedOrder) -> list[registry_pb2.CatalogEntry]:
    encoder = SentenceTransformerEncoder(order.encoder, backend=EncoderBackend.AUTO, kept_folder=KEPT_ENCODERS_FOLDER)
    centers_LE = encoder.encode([task_text(task, 0) for task in range(order.num_adapters)])
    samples_LME = synthetic_samples(centers_LE)
    entries: list[registry_pb2.CatalogEntry] = []
    for task, samples_ME in enumerate(samples_LME):
        name = task_name(task)
        revision = hashlib.sha256(name.encode()).hexdigest()
        grams = SampleGrams.of([task_text(task, number) for number in range(len(samples_ME))])
        entries.append(
            registry_pb2.CatalogEntry(
                adapter_id=adapter_id_of(name, revision),
                adapter_name=name,
                revision=revision,
                lora_rank=_LORA_RANK,
                num_modules=4,
                catalog_generation=task + 1,
                created_at=_CREATED_AT,
                base_model="bench",
                encoder_id=encoder.encoder_id,
                samples_source="upload",
                num_samples=len(samples_ME),
                sample_embeddings=samples_ME.astype("<f4").tobytes(),
                embedding_dim=encoder.embedding_dim,
                gram_scheme=GRAM_SCHEME,
                sample_gram_lengths=grams.lengths_M.tolist(),
                sample_grams=grams.ids_N.astype("<u2").tobytes(),
            )
        )
    return entries


async def run_feed(order: FeedOrder) -> None:
    """Serve the pool until standard input ends."""
    entries = await asyncio.to_thread(_entries, order)
    feed = _Feed(entries)  # pyright: ignore[reportAbstractUsage]  (the rest answers UNIMPLEMENTED)
    rpc = RpcServer(
        host="127.0.0.1",
        port=0,
        register=[lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(feed, server)],
        service_names=["hilora_rpc.v1.RegistryService"],
    )
    await rpc.start()
    say({"rpc_address": rpc.address})

    async def obey(_: dict[str, Any]) -> dict[str, Any]:
        return {"num_adapters": len(entries)}

    await answer_commands(obey)
    await rpc.stop(grace_seconds=0)


if __name__ == "__main__":
    configure_logging(service="bench-feed", level="WARNING")
    event_loop.run(run_feed(FeedOrder(**json.loads(sys.argv[1]))))
