"""Versions and reviews over a real gRPC channel."""

from __future__ import annotations

import grpc
import pytest

from hilora.errors import Conflict, InvalidInput, UnknownAdapter
from hilora_rpc.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors
from services.common.rpc_server import RpcServer
from services.registry.audit import AuditOutcome
from services.registry.entrypoints.lifecycle_rpc import LIFECYCLE_SERVICE_NAME, LifecycleServicer
from services.registry.entrypoints.rpc_access import RpcAccess
from tests.fakes.registry_stack import RegistryStack

_KEY = (("authorization", "Bearer secret"),)
_Name = lifecycle_pb2.ListVersionsRequest
_Review = lifecycle_pb2.ReviewAdapterRequest


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path, key="secret", holds_new_versions=True)
    for seed in range(2):
        await stack.publish(seed=seed)
    return stack


@pytest.fixture
async def stub(stack):
    access = RpcAccess(keys=stack.keys, audit=stack.audit)
    servicer = LifecycleServicer(lifecycle=stack.lifecycle, access=access)
    server = RpcServer(host="127.0.0.1", port=0, register=[servicer.register], service_names=[LIFECYCLE_SERVICE_NAME])
    await server.start()
    channel = open_channel(server.address)
    yield lifecycle_pb2_grpc.AdapterLifecycleServiceStub(channel)
    await channel.close()
    await server.stop(grace_seconds=0)


class TestLifecycle:
    async def test_versions_are_approved_rejected_and_rolled_back(self, stub):
        first = await stub.ApproveAdapter(_Review(adapter_name="a", version="1", reviewer="ada"), metadata=_KEY)
        second = await stub.ApproveAdapter(_Review(adapter_name="a", reviewer="ada", reason="ok"), metadata=_KEY)
        back = await stub.RollBackAdapter(lifecycle_pb2.RollBackAdapterRequest(adapter_name="a"), metadata=_KEY)
        history = await stub.ListVersions(_Name(adapter_name="a"), metadata=_KEY)

        assert (first.version, second.version, back.version) == (1, 2, 1)
        assert back.adapter_id == first.adapter_id
        assert first.catalog_generation < second.catalog_generation < back.catalog_generation
        assert [(item.version, item.is_current, item.reviewer) for item in history.versions] == [
            (1, True, "ada"),
            (2, False, "ada"),
        ]

    async def test_a_rejected_one_is_not_served(self, stub, stack):
        answer = await stub.RejectAdapter(_Review(adapter_name="a", reviewer="ada", reason="no"), metadata=_KEY)
        history = await stub.ListVersions(_Name(adapter_name="a"), metadata=_KEY)

        assert (answer.version, answer.adapter_id) == (0, "")
        assert history.versions[1].state == lifecycle_pb2.VERSION_STATE_REJECTED
        assert (await stack.catalog.snapshot()).entries == {}

    async def test_a_decision_is_the_keys_where_nobody_is_named(self, stub, stack):
        await stub.ApproveAdapter(_Review(adapter_name="a"), metadata=_KEY)
        history = await stub.ListVersions(_Name(adapter_name="a"), metadata=_KEY)

        assert history.versions[1].reviewer == "admin"

    async def test_every_attempt_at_a_change_has_its_line_in_the_audit_log(self, stub, stack):
        await stub.ApproveAdapter(_Review(adapter_name="a", version="1"), metadata=_KEY)
        await stub.RejectAdapter(_Review(adapter_name="a"), metadata=_KEY)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.RollBackAdapter(lifecycle_pb2.RollBackAdapterRequest(adapter_name="a"), metadata=_KEY)

        lines = [
            (event.action, event.outcome, event.adapter) for event in stack.audit.page(before=None, limit=9).events
        ]
        assert lines == [
            ("roll_back_adapter", AuditOutcome.REFUSED, "a"),
            ("reject_adapter", AuditOutcome.DONE, "a"),
            ("approve_adapter", AuditOutcome.DONE, "a"),
        ]

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (lambda stub: stub.ListVersions(_Name(adapter_name="b"), metadata=_KEY), UnknownAdapter),
            (lambda stub: stub.ApproveAdapter(_Review(adapter_name="a", reviewer=" "), metadata=_KEY), InvalidInput),
            (
                lambda stub: stub.RollBackAdapter(
                    lifecycle_pb2.RollBackAdapterRequest(adapter_name="a", version="1"), metadata=_KEY
                ),
                Conflict,
            ),
        ],
    )
    async def test_errors_arrive_as_what_they_are(self, stub, call, expected):
        with pytest.raises(expected), translated_errors(peer="registry"):
            await call(stub)

    async def test_without_the_key_nothing_is_told_or_changed(self, stub):
        for call in (
            stub.ListVersions(_Name(adapter_name="a")),
            stub.ApproveAdapter(_Review(adapter_name="a", reviewer="eve")),
            stub.RejectAdapter(_Review(adapter_name="a", reviewer="eve")),
            stub.RollBackAdapter(lifecycle_pb2.RollBackAdapterRequest(adapter_name="a")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
