"""A real gRPC server and client of ours: errors, health, reflection, drain."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hilora.errors import GenerationFailed, QueueFull, RequestAborted, Unavailable
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors, translated_stream
from services.common.rpc_server import RpcServer

SERVICE = "hilora_rpc.v1.WorkerService"


class Servicer(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self):
        self.gate = asyncio.Event()

    async def Generate(self, request, context):
        yield worker_pb2.GenerateEvent(delta=worker_pb2.TextDelta(text="a"))
        if request.request_id == "fails":
            raise GenerationFailed("broke", code="non_finite_logits", remedy="Retire it.")
        await self.gate.wait()
        yield worker_pb2.GenerateEvent(delta=worker_pb2.TextDelta(text="b"))

    async def Abort(self, request, context):
        raise QueueFull("full", retry_after_seconds=7)

    async def Stats(self, request, context):
        return worker_pb2.StatsResponse(worker_id="w")


@pytest.fixture
async def served():
    servicer = Servicer()
    server = RpcServer(
        host="127.0.0.1",
        port=0,
        register=[lambda s: worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, s)],
        service_names=[SERVICE],
    )
    await server.start()
    channel = open_channel(server.address)
    yield server, servicer, channel
    await channel.close()
    await server.stop(grace_seconds=0)


class TestErrors:
    async def test_a_raised_error_arrives_as_the_same_class(self, served):
        _, _, channel = served

        with pytest.raises(QueueFull) as raised, translated_errors("worker"):
            await worker_pb2_grpc.WorkerServiceStub(channel).Abort(worker_pb2.AbortRequest())

        assert raised.value.retry_after_seconds == 7

    async def test_a_stream_delivers_what_came_before_its_error(self, served):
        _, _, channel = served
        stream = worker_pb2_grpc.WorkerServiceStub(channel).Generate(worker_pb2.GenerateRequest(request_id="fails"))
        texts = []

        with pytest.raises(GenerationFailed) as raised:
            async for event in translated_stream(stream, peer="worker"):
                texts.append(event.delta.text)

        assert texts == ["a"]
        assert raised.value.code == "non_finite_logits"

    async def test_nobody_listening_is_unavailable(self):
        channel = open_channel("127.0.0.1:1")

        with pytest.raises(Unavailable, match="the worker"), translated_errors("the worker"):
            await worker_pb2_grpc.WorkerServiceStub(channel).Stats(worker_pb2.StatsRequest())
        await channel.close()


class TestHealth:
    async def test_serving_is_said_only_once_set(self, served):
        server, _, channel = served
        stub = health_pb2_grpc.HealthStub(channel)

        before = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        await server.set_serving(is_serving=True)
        after = await stub.Check(health_pb2.HealthCheckRequest(service=""))

        assert before.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert after.status == health_pb2.HealthCheckResponse.SERVING

    async def test_an_unknown_service_is_not_found(self, served):
        _, _, channel = served

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nobody"))

        assert raised.value.code() is grpc.StatusCode.NOT_FOUND

    async def test_reflection_lists_the_services(self, served):
        _, _, channel = served
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )

        response = await call.read()

        assert SERVICE in {service.name for service in response.list_services_response.service}


class TestDrain:
    async def test_a_stream_in_flight_finishes_while_new_calls_are_refused(self, served):
        server, servicer, channel = served
        stream = worker_pb2_grpc.WorkerServiceStub(channel).Generate(worker_pb2.GenerateRequest())
        await stream.read()

        stopping = asyncio.create_task(server.stop(grace_seconds=10))
        await asyncio.sleep(0.1)
        servicer.gate.set()
        last = await stream.read()
        await stopping

        assert last.delta.text == "b"

    async def test_after_the_grace_what_is_left_is_cancelled(self, served):
        server, _, channel = served
        stream = worker_pb2_grpc.WorkerServiceStub(channel).Generate(worker_pb2.GenerateRequest())
        events = aiter(translated_stream(stream, peer="worker"))
        await anext(events)

        await server.stop(grace_seconds=0.1)

        with pytest.raises((RequestAborted, Unavailable)):
            await anext(events)
