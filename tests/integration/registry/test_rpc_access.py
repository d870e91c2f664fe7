"""Keys, jobs and the audit log at the gRPC door; Redis and the ingest process are fakes."""

from __future__ import annotations

from functools import partial

import grpc
import pytest
from pydantic import SecretStr

from hilora.errors import Conflict, InvalidInput, PermissionDenied, Unauthenticated
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc, routing_pb2
from services.common.auth import AccessKey, Scope
from services.common.rpc_client import open_channel, translated_errors
from services.common.rpc_server import RpcServer
from services.registry.entrypoints.rpc import SERVICE_NAME, RegistryServicer, register_with
from services.registry.entrypoints.rpc_access import RpcAccess
from tests.builders.archives import adapter_files
from tests.builders.patience import patient
from tests.fakes.registry_stack import RegistryStack

KEYS = [AccessKey.of_secret(f"{scope}-only", SecretStr(scope.value), frozenset({scope})) for scope in Scope]
CALLS = {
    "Ingest": (registry_pb2.IngestRequest(), Scope.WRITE),
    "RetireAdapter": (registry_pb2.RetireAdapterRequest(adapter_name="a"), Scope.WRITE),
    "CancelJob": (registry_pb2.CancelJobRequest(job_id="a"), Scope.WRITE),
    "GetJob": (registry_pb2.GetJobRequest(job_id="a"), Scope.READ),
    "WatchJob": (registry_pb2.WatchJobRequest(job_id="a"), Scope.READ),
    "GetAdapter": (registry_pb2.GetAdapterRequest(adapter_name="a"), Scope.READ),
    "ListAdapters": (registry_pb2.ListAdaptersRequest(), Scope.READ),
    "GetValidationReport": (registry_pb2.GetValidationReportRequest(adapter_name="a"), Scope.READ),
    "ProfileAdapter": (registry_pb2.ProfileAdapterRequest(adapter_name="a"), Scope.WRITE),
}
FOLLOWERS = {
    "GetSnapshot": registry_pb2.GetSnapshotRequest(),
    "Watch": registry_pb2.WatchRequest(after_generation=99),
    "FetchComponents": registry_pb2.FetchComponentsRequest(adapter_id="a@0", basis=routing_pb2.ROC_BASIS_SVD),
}


@pytest.fixture
def stack(tmp_path):
    folder = tmp_path / "pool" / "sorter"
    folder.mkdir(parents=True)
    for name, data in adapter_files().items():
        (folder / name).write_bytes(data)
    return RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",), keys=KEYS)


@pytest.fixture
async def stub(stack):
    servicer = RegistryServicer(
        catalog=stack.catalog,
        jobs=stack.jobs,
        intake=stack.intake,
        cancellation=stack.cancellation,
        orders=stack.orders,
        access=RpcAccess(keys=stack.keys, audit=stack.audit),
        heartbeat_seconds=0.2,
    )
    server = RpcServer(
        host="127.0.0.1", port=0, register=[partial(register_with, servicer)], service_names=[SERVICE_NAME]
    )
    await server.start()
    channel = open_channel(server.address)
    yield registry_pb2_grpc.RegistryServiceStub(channel)
    servicer.close()
    await channel.close()
    await server.stop(grace_seconds=0)


def bearer(key, **more):
    return (("authorization", f"Bearer {key}"), *((name.replace("_", "-"), value) for name, value in more.items()))


async def outcome(stub, method, request, metadata=()):
    """The status of a call; OK if it answers."""
    call = getattr(stub, method)(request, metadata=metadata, timeout=patient(20))
    try:
        if hasattr(call, "read"):
            await call.read()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


class TestKeys:
    def test_every_call_is_either_a_follower_s_or_guarded(self):
        methods = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name

        assert set(methods) == {*CALLS, *FOLLOWERS}

    @pytest.mark.parametrize("method", CALLS)
    async def test_each_call_takes_its_own_scope_and_no_other(self, stub, method):
        request, needed = CALLS[method]

        without = await outcome(stub, method, request)
        by_scope = {scope: await outcome(stub, method, request, bearer(scope.value)) for scope in Scope}

        assert without is grpc.StatusCode.UNAUTHENTICATED
        for scope, status in by_scope.items():
            assert (status is grpc.StatusCode.PERMISSION_DENIED) == (scope is not needed), scope

    @pytest.mark.parametrize("method", FOLLOWERS)
    async def test_routers_and_workers_need_none(self, stub, method):
        status = await outcome(stub, method, FOLLOWERS[method])

        assert status in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}

    async def test_a_refusal_keeps_its_kind_and_code(self, stub):
        with pytest.raises(Unauthenticated) as unknown, translated_errors("registry"):
            await stub.ListAdapters(registry_pb2.ListAdaptersRequest())
        with pytest.raises(PermissionDenied) as short, translated_errors("registry"):
            await stub.ListAdapters(registry_pb2.ListAdaptersRequest(), metadata=bearer("write"))

        assert (unknown.value.code, short.value.code) == ("invalid_api_key", "insufficient_scope")


class TestJobs:
    async def ingest(self, stub, stack):
        path = str(stack.data_dir.parent / "pool" / "sorter")
        return await stub.Ingest(
            registry_pb2.IngestRequest(local_path=path), metadata=bearer("write", x_request_id="call-1")
        )

    async def test_the_report_says_how_an_adapter_was_compressed(self, stub, stack):
        request = registry_pb2.IngestRequest(local_path=str(stack.data_dir.parent / "pool" / "sorter"))
        request.squeeze.rank = 1
        await stub.Ingest(request, metadata=bearer("write"))
        await stack.work()

        report = await stub.GetValidationReport(
            registry_pb2.GetValidationReportRequest(adapter_name="sorter"), metadata=bearer("read")
        )

        entry = await stub.GetAdapter(registry_pb2.GetAdapterRequest(adapter_name="sorter"), metadata=bearer("read"))
        assert entry.lora_rank == 1
        assert report.adapter_id == entry.adapter_id
        squeezed = [finding for finding in report.findings if finding.code == "squeezed"]
        assert [finding.severity for finding in squeezed] == [registry_pb2.FINDING_SEVERITY_INFO]
        assert "to 1" in squeezed[0].message

    async def test_a_squeeze_to_nothing_is_refused(self, stub, stack):
        request = registry_pb2.IngestRequest(local_path=str(stack.data_dir.parent / "pool" / "sorter"))
        request.squeeze.energy = 1.5

        with pytest.raises(InvalidInput) as refusal, translated_errors("registry"):
            await stub.Ingest(request, metadata=bearer("write"))

        assert refusal.value.code == "invalid_squeeze"

    async def test_another_version_replaces_the_first_only_if_asked(self, stub, stack):
        await self.ingest(stub, stack)
        await stack.work()
        request = registry_pb2.IngestRequest(local_path=str(stack.data_dir.parent / "pool" / "sorter"))
        request.squeeze.rank = 1

        jobs = []
        for request.replaces in (False, True):
            jobs.append(await stub.Ingest(request, metadata=bearer("write")))
            await stack.work()
        kept, replaced = [
            await stub.GetJob(registry_pb2.GetJobRequest(job_id=job.job_id), metadata=bearer("read")) for job in jobs
        ]

        assert (kept.state, kept.error.code) == (registry_pb2.INGEST_STATE_FAILED, "adapter_already_registered")
        assert replaced.state == registry_pb2.INGEST_STATE_READY

    async def test_a_profile_is_made_of_what_exists_or_refused(self, stub, stack):
        await self.ingest(stub, stack)
        await stack.work()

        with pytest.raises(InvalidInput) as refusal, translated_errors("registry"):
            await stub.ProfileAdapter(
                registry_pb2.ProfileAdapterRequest(adapter_name="sorter", source="hearsay"), metadata=bearer("write")
            )

        assert (refusal.value.code, refusal.value.place) == ("invalid_request", "source")

    async def test_a_job_is_watched_to_its_end(self, stub, stack):
        job = await self.ingest(stub, stack)
        watching = aiter(stub.WatchJob(registry_pb2.WatchJobRequest(job_id=job.job_id), metadata=bearer("read")))
        first = await anext(watching)
        await stack.work()

        states = [first.state, *[message.state async for message in watching]]

        assert (states[0], states[-1]) == (registry_pb2.INGEST_STATE_PENDING, registry_pb2.INGEST_STATE_READY)

    async def test_a_job_is_called_off(self, stub, stack):
        job = await self.ingest(stub, stack)
        request = registry_pb2.CancelJobRequest(job_id=job.job_id)

        cancelled = await stub.CancelJob(request, metadata=bearer("write"))
        with pytest.raises(Conflict) as again, translated_errors("registry"):
            await stub.CancelJob(request, metadata=bearer("write"))

        assert cancelled.state == registry_pb2.INGEST_STATE_CANCELLED
        assert again.value.code == "job_finished"

    async def test_every_change_is_in_the_audit_log(self, stub, stack):
        job = await self.ingest(stub, stack)
        await stack.work()
        retire = registry_pb2.RetireAdapterRequest(adapter_name="sorter")
        await stub.RetireAdapter(retire, metadata=bearer("write"))
        for key in ("write", "read", "nobody"):
            await outcome(stub, "RetireAdapter", retire, bearer(key))

        events = stack.audit.page(before=None, limit=10).events

        assert [(event.principal, event.action, event.outcome.value, event.code) for event in events] == [
            ("read-only", "retire_adapter", "refused", "insufficient_scope"),
            ("write-only", "retire_adapter", "refused", "unknown_adapter"),
            ("write-only", "retire_adapter", "done", None),
            ("write-only", "ingest", "done", None),
            ("write-only", "add_adapter", "accepted", None),
        ]
        assert {event.door for event in events} == {"grpc", "ingest"}
        assert [(event.job_id, event.request_id) for event in events[-2:]] == [(job.job_id, "call-1")] * 2
