"""The gRPC door with a real Redis: snapshot, watch, components, ingest by reference."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import numpy as np
import pytest
import pytest_asyncio
import safetensors.torch

from hilora.character_grams import GRAM_SCHEME
from hilora.errors import InvalidInput, UnknownAdapter
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc, routing_pb2
from services.common.rpc_client import open_channel, translated_errors
from tests.builders.registry_process import TESTBED

pytestmark = pytest.mark.asyncio(loop_scope="module")
Event = registry_pb2.CatalogEvent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(registry):
    channel = open_channel(registry.service.rpc_address)
    yield registry_pb2_grpc.RegistryServiceStub(channel)
    await channel.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ready(registry):
    job = await registry.finished(await registry.upload("reverse-letters"))
    assert job["state"] == "READY", job
    return job["adapter_id"]


async def snapshot(stub, **options):
    return [chunk async for chunk in stub.GetSnapshot(registry_pb2.GetSnapshotRequest(**options))]


async def next_of_kind(stream, *kinds):
    async with asyncio.timeout(20):
        while (event := await stream.read()).kind not in kinds:
            assert event.kind == Event.KIND_HEARTBEAT
    return event


class TestSnapshot:
    async def test_entries_bring_their_embeddings(self, stub, ready):
        (chunk,) = await snapshot(stub)
        (entry,) = [item for item in chunk.entries if item.adapter_id == ready]

        embeddings_mE = np.frombuffer(entry.sample_embeddings, dtype="<f4").reshape(-1, entry.embedding_dim)

        assert chunk.num_entries == len(chunk.entries)
        assert embeddings_mE.shape == (entry.num_samples, 384)
        np.testing.assert_allclose(np.linalg.norm(embeddings_mE, axis=1), 1.0, atol=1e-5)
        assert entry.gram_scheme == GRAM_SCHEME
        assert len(entry.sample_gram_lengths) == entry.num_samples
        assert len(entry.sample_grams) == 2 * sum(entry.sample_gram_lengths) > 0

    async def test_a_worker_need_not_take_them(self, stub, ready):
        (chunk,) = await snapshot(stub, without_samples=True)

        assert ready in [entry.adapter_id for entry in chunk.entries]
        assert all(entry.sample_embeddings == b"" for entry in chunk.entries)

    async def test_one_adapter_and_the_list(self, stub, ready):
        entry = await stub.GetAdapter(registry_pb2.GetAdapterRequest(adapter_name="reverse-letters"))
        listed = await stub.ListAdapters(registry_pb2.ListAdaptersRequest())

        assert entry.adapter_id == ready
        assert ready in [item.adapter_id for item in listed.entries]
        with pytest.raises(UnknownAdapter), translated_errors("registry"):
            await stub.GetAdapter(registry_pb2.GetAdapterRequest(adapter_name="nobody"))


class TestWatch:
    async def test_publication_and_retirement_arrive_as_they_happen(self, stub, ready, registry):
        (chunk,) = await snapshot(stub)
        stream = stub.Watch(registry_pb2.WatchRequest(after_generation=chunk.catalog_generation))

        heartbeat = await next_of_kind(stream, Event.KIND_HEARTBEAT)
        assert heartbeat.catalog_generation == chunk.catalog_generation
        await registry.finished(await registry.upload("sort-letters"))
        added = await next_of_kind(stream, Event.KIND_UPSERT)
        retired = await stub.RetireAdapter(registry_pb2.RetireAdapterRequest(adapter_name="sort-letters"))
        removed = await next_of_kind(stream, Event.KIND_REMOVE)
        stream.cancel()

        assert (added.catalog_generation, added.adapter_name) == (chunk.catalog_generation + 1, "sort-letters")
        assert len(added.entry.sample_embeddings) == 5 * 384 * 4
        assert removed.adapter_name == "sort-letters"
        assert removed.catalog_generation == retired.catalog_generation == chunk.catalog_generation + 2

    async def test_missed_changes_are_caught_up(self, stub, ready, registry):
        (chunk,) = await snapshot(stub)
        await registry.finished(await registry.upload("sort-digits"))
        stream = stub.Watch(registry_pb2.WatchRequest(after_generation=chunk.catalog_generation, without_samples=True))

        event = await next_of_kind(stream, Event.KIND_UPSERT)
        stream.cancel()

        assert event.entry.adapter_name == "sort-digits"
        assert event.entry.sample_embeddings == b""

    async def test_an_unknown_generation_is_told_to_start_over(self, stub, ready):
        events = [event async for event in stub.Watch(registry_pb2.WatchRequest(after_generation=10_000))]

        assert [event.kind for event in events] == [Event.KIND_RESYNC]

    async def test_a_stop_does_not_wait_for_followers(self, stub, ready, registry):
        (chunk,) = await snapshot(stub)
        stream = stub.Watch(registry_pb2.WatchRequest(after_generation=chunk.catalog_generation))
        await stream.read()
        loop = asyncio.get_running_loop()
        address = registry.service.rpc_address

        began = loop.time()
        await registry.service.stop(grace_seconds=10)
        took = loop.time() - began
        registry.service = None
        registry.settings = registry.settings.model_copy(update={"rpc_port": int(address.rpartition(":")[2])})
        await registry.start_service()

        assert took < 5
        assert registry.service.rpc_address == address
        async with asyncio.timeout(20):
            await stub.ListAdapters(registry_pb2.ListAdaptersRequest(), wait_for_ready=True)


class TestComponents:
    @pytest.mark.parametrize("basis", [routing_pb2.ROC_BASIS_SVD, routing_pb2.ROC_BASIS_TRAINED])
    async def test_a_file_arrives_whole(self, stub, ready, basis):
        request = registry_pb2.FetchComponentsRequest(adapter_id=ready, basis=basis)
        chunks = [chunk async for chunk in stub.FetchComponents(request)]
        data = b"".join(chunk.data for chunk in chunks)
        entry = await stub.GetAdapter(registry_pb2.GetAdapterRequest(adapter_name="reverse-letters"))
        name = "svd" if basis == routing_pb2.ROC_BASIS_SVD else "trained"

        assert {chunk.total_bytes for chunk in chunks} == {len(data)}
        assert hashlib.sha256(data).hexdigest() == entry.component_sha256[name]
        assert len(safetensors.torch.load(data)) == 2 * entry.num_modules

    async def test_a_retired_version_is_still_there_for_running_plans(self, stub, ready, registry):
        job = await registry.finished(await registry.upload("copy-letters"))
        await registry.client.delete("/v1/adapters/copy-letters")
        request = registry_pb2.FetchComponentsRequest(adapter_id=job["adapter_id"], basis=routing_pb2.ROC_BASIS_SVD)

        assert [chunk async for chunk in stub.FetchComponents(request)]

    async def test_what_is_not_there(self, stub, ready):
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.FetchComponents(
                registry_pb2.FetchComponentsRequest(adapter_id="a@000000000000", basis=routing_pb2.ROC_BASIS_SVD)
            ).read()
        with pytest.raises(grpc.aio.AioRpcError) as no_basis:
            await stub.FetchComponents(registry_pb2.FetchComponentsRequest(adapter_id=ready)).read()

        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert no_basis.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class TestIngest:
    async def test_a_folder_by_reference(self, stub, registry, ready):
        job = await stub.Ingest(
            registry_pb2.IngestRequest(local_path=str(TESTBED / "adapters" / "swap-letters"), sample_texts=["a", "b"])
        )
        assert (job.adapter_name, job.state) == ("swap-letters", registry_pb2.INGEST_STATE_PENDING)
        await registry.finished(job.job_id)

        done = await stub.GetJob(registry_pb2.GetJobRequest(job_id=job.job_id))

        assert (done.state, done.progress) == (registry_pb2.INGEST_STATE_READY, 1.0)
        assert done.adapter_id.startswith("swap-letters@")

    async def test_a_failure_carries_its_reason(self, stub, registry, ready):
        job = await stub.Ingest(registry_pb2.IngestRequest(local_path=str(TESTBED / "base"), adapter_name="broken"))
        await registry.finished(job.job_id)

        done = await stub.GetJob(registry_pb2.GetJobRequest(job_id=job.job_id))

        assert (done.state, done.error.code) == (registry_pb2.INGEST_STATE_FAILED, "missing_file")
        assert done.error.remedy

    async def test_refusals(self, stub, ready):
        with pytest.raises(InvalidInput) as no_source, translated_errors("registry"):
            await stub.Ingest(registry_pb2.IngestRequest(adapter_name="a"))
        with pytest.raises(InvalidInput) as outside, translated_errors("registry"):
            await stub.Ingest(registry_pb2.IngestRequest(local_path="/etc"))
        with pytest.raises(InvalidInput) as store, translated_errors("registry"):
            await stub.Ingest(registry_pb2.IngestRequest(object_url="s3://bucket/sorter"))
        with pytest.raises(InvalidInput) as web, translated_errors("registry"):
            await stub.Ingest(registry_pb2.IngestRequest(archive_url="https://files.example/sorter.zip"))
        with pytest.raises(UnknownAdapter) as no_job, translated_errors("registry"):
            await stub.GetJob(registry_pb2.GetJobRequest(job_id="x"))

        codes = [raised.value.code for raised in (no_source, outside, store, web, no_job)]
        assert codes == [
            "invalid_request",
            "path_not_allowed",
            "object_store_not_allowed",
            "url_not_allowed",
            "unknown_job",
        ]
