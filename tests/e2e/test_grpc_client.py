"""A gRPC client against the running system: the same abilities as REST, plus health and reflection."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hilora_rpc.v1 import router_pb2, router_pb2_grpc, routing_pb2, worker_pb2
from tests.builders.patience import patient
from tests.builders.system import chosen_adapters, lines_of, task_lines


@pytest.fixture(scope="module")
def channel(system):
    with grpc.insecure_channel(f"127.0.0.1:{system.rpc_port}") as channel:
        yield channel


def generate(channel, prompt, **options):
    request = router_pb2.RoutedGenerateRequest(
        prompt=prompt,
        sampling=worker_pb2.SamplingParams(max_tokens=24, temperature=0),
        options=router_pb2.RoutingOptions(**options),
    )
    events = list(router_pb2_grpc.RouterServiceStub(channel).Generate(request, timeout=patient(60)))
    text = "".join(event.generated.delta.text for event in events if event.generated.HasField("delta"))
    return events, text


class TestRouterService:
    def test_generate_says_what_rest_says(self, system, channel):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        events, text = generate(channel, line["prompt"], model="auto")

        answer = system.complete(line["prompt"])
        assert text == answer["choices"][0]["text"]
        assert events[0].WhichOneof("event") == "route"
        assert [event.generated.WhichOneof("event") for event in events[1:]][:1] == ["started"]
        finished = events[-1].generated.finished
        assert finished.finish_reason == worker_pb2.FINISH_REASON_STOP
        assert [budget.adapter_name for budget in finished.budgets_used] == chosen_adapters(answer)

    def test_route_explains(self, channel):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        response = router_pb2_grpc.RouterServiceStub(channel).Route(
            router_pb2.RouteRequest(text=line["prompt"]), timeout=patient(30)
        )

        best = response.decision.candidates[0]
        assert best.adapter_name == line["task"]
        assert response.decision.mode == routing_pb2.ROUTING_MODE_CALIBRATED
        assert not response.decision.is_out_of_distribution or best.log_likelihood_ratio < 0
        assert response.decision.plan.catalog_generation == response.catalog_generation > 0

    def test_an_excluded_adapter_does_not_run(self, channel):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        events, _ = generate(channel, line["prompt"], exclude_adapters=[line["task"]])

        used = [budget.adapter_name for budget in events[-1].generated.finished.budgets_used]
        assert used
        assert line["task"] not in used

    def test_an_unknown_model_is_not_found(self, channel):
        with pytest.raises(grpc.RpcError) as raised:
            generate(channel, "x", model="nobody")

        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


class TestStandardServices:
    def test_it_is_serving(self, channel):
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=patient(10))

        assert response.status == health_pb2.HealthCheckResponse.SERVING

    def test_reflection_names_the_service(self, channel):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        responses = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([request]), timeout=patient(10)
        )

        names = {service.name for service in next(responses).list_services_response.service}

        assert "hilora_rpc.v1.RouterService" in names
