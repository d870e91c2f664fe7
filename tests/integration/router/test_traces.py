"""Traces from a client's call over the router to its worker, received by a real OTLP receiver."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from hilora.errors import InvalidInput
from hilora_rpc.v1 import router_pb2, router_pb2_grpc, worker_pb2_grpc
from services.common.rpc_client import open_channel
from services.common.rpc_server import RpcServer
from services.common.tracer_start import open_tracer
from services.common.tracing import current_span
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import TASK_WORDS, eventually, running_router, task_texts
from tests.fakes.worker_service import FakeWorkerService

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_SECRET = "xyzzy-the-secret-word"


class Received:
    """Spans by name, with their service and attributes."""

    def __init__(self):
        self.spans = []

    def take(self, body):
        request = otlp.ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            for scope in group.scope_spans:
                self.spans += [(service, span) for span in scope.spans]

    def named(self, name):
        return next((span for _, span in self.spans if span.name == name), None)


def attributes(span):
    def plain(value):
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {a.key: plain(a.value) for a in span.attributes}


@contextmanager
def receiver():
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                received.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def traced_system(endpoint, **settings):
    """A router and a worker that both trace; when the block ends, every span was sent."""
    encoder, registry, service = HashEncoder(), FakeRegistry(), FakeWorkerService()
    for task in TASK_WORDS:
        registry.service.upsert(catalog_entry(task, task_texts(task), encoder=encoder))
    service.catalog_generation = registry.service.generation
    tracer = open_tracer(service="hilora-worker", endpoint=endpoint, sample_ratio=1.0)
    worker = RpcServer(
        host="127.0.0.1",
        port=0,
        register=[lambda server: worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)],
        service_names=["hilora_rpc.v1.WorkerService"],
        tracer=tracer,
    )
    await registry.start()
    await worker.start()
    router = build_router(
        RouterSettings(
            rpc_port=0,
            rest_port=0,
            registry_address=registry.address,
            worker_addresses=(worker.address,),
            otlp_endpoint=endpoint,
            **settings,
        ),
        load_encoder=lambda: encoder,
    )
    await router.start()
    try:
        await eventually(lambda: router.readiness().can_generate)
        async with httpx.AsyncClient(base_url=f"http://{router.rest_address}") as plain:
            yield router, plain
    finally:
        await router.stop(grace_seconds=2)
        await worker.stop(grace_seconds=0)
        await tracer.stop(grace_seconds=2)
        await registry.stop()


class TestTraces:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_one_trace_leads_from_the_client_to_the_worker(self, stream):
        with receiver() as (received, endpoint):
            async with traced_system(endpoint) as (_, plain):
                await plain.post(
                    "/v1/completions",
                    json={"model": "auto", "prompt": f"country capital {_SECRET}", "stream": stream},
                    headers={"traceparent": f"00-{_TRACE_ID}-00f067aa0ba902b7-01"},
                )
        edge = received.named("POST /v1/completions")
        generation = received.named("text_completion")
        worker = received.named("hilora_rpc.v1.WorkerService/Generate")
        assert {span.trace_id.hex() for _, span in received.spans} == {_TRACE_ID}
        assert edge.parent_span_id.hex() == "00f067aa0ba902b7"
        assert generation.parent_span_id == worker.parent_span_id == edge.span_id
        assert received.named("hilora.encode").parent_span_id == generation.span_id
        told = attributes(generation)
        assert told["gen_ai.operation.name"] == "text_completion"
        assert told["gen_ai.usage.output_tokens"] == 4
        assert told["hilora.route.adapters"][0] == "capitals"
        assert 0 < told["hilora.route.top_posterior"] <= 1
        assert told["hilora.route.catalog_generation"] == 3
        assert len(told["hilora.route.plan_digest"]) == 64
        assert told["hilora.outcome"] == "ok"
        assert {service for service, _ in received.spans} == {"hilora-router", "hilora-worker"}
        assert not any(_SECRET in str(span) for _, span in received.spans)

    async def test_polls_and_probes_leave_no_span(self):
        with receiver() as (received, endpoint):
            async with traced_system(endpoint) as (_, plain):
                await plain.get("/readyz")
                await plain.post("/v1/route", json={"text": "country"})
        assert [span.name for _, span in received.spans] == ["POST /v1/route"]
        assert attributes(received.named("POST /v1/route"))["hilora.route.mode"] == "calibrated"

    async def test_the_grpc_door_is_traced_as_well(self):
        with receiver() as (received, endpoint):
            async with traced_system(endpoint) as (router, _), open_channel(router.rpc_address) as channel:
                call = router_pb2_grpc.RouterServiceStub(channel).Generate(
                    router_pb2.RoutedGenerateRequest(prompt="country capital")
                )
                assert [event async for event in call]
        door = received.named("hilora_rpc.v1.RouterService/Generate")
        assert received.named("hilora_rpc.v1.WorkerService/Generate").parent_span_id == door.span_id

    async def test_what_is_not_sampled_is_not_sent(self):
        with receiver() as (received, endpoint):
            async with traced_system(endpoint, trace_sample_ratio=0.0) as (_, plain):
                await plain.post("/v1/completions", json={"model": "auto", "prompt": "x"})
        assert received.spans == []

    async def test_a_receiver_that_is_away_hurts_nobody(self):
        async with traced_system("http://127.0.0.1:9") as (_, plain):
            answers = await asyncio.gather(
                *(plain.post("/v1/completions", json={"model": "auto", "prompt": str(n)}) for n in range(5))
            )
        assert [answer.status_code for answer in answers] == [200] * 5


class TestOff:
    async def test_without_an_endpoint_there_is_no_tracer_and_no_metadata(self):
        assert open_tracer(service="x", endpoint=None, sample_ratio=1.0) is None
        assert current_span() is None
        async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            headers = {"traceparent": f"00-{_TRACE_ID}-00f067aa0ba902b7-01"}
            answer = await plain.post("/v1/completions", json={"model": "auto", "prompt": "x"}, headers=headers)
        assert answer.status_code == 200

    def test_an_endpoint_that_is_no_url_is_refused(self):
        with pytest.raises(InvalidInput) as raised:
            open_tracer(service="x", endpoint="collector:4318", sample_ratio=1.0)
        assert raised.value.code == "invalid_endpoint"
