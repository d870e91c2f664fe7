"""The spans of the router: one for each request at the edge, inside it one for the choice and one for the generation.

Attributes follow OpenTelemetry's conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/)
where they have a word, and begin with `hilora.` where they have none. No word of a prompt is among them.
"""

from __future__ import annotations

from services.common.tracing import AttributeValue, SpanKind, current_span
from services.router.answer import RouteResult
from services.router.observation import GenerationRecord
from services.router.request import ChatPrompt

_MAX_ADAPTERS = 16


def trace_route(route: RouteResult) -> None:
    """Say at the span of the request at hand what was decided for it."""
    span = current_span()
    if span is not None:
        span.set(route_attributes(route))


def trace_generation(record: GenerationRecord) -> None:
    """Put a generation that has ended, and its choice, into the trace of the request at hand."""
    parent = current_span()
    if parent is None:
        return
    operation = "chat" if isinstance(record.request.prompt, ChatPrompt) else "text_completion"
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "hilora",
        "gen_ai.request.model": record.request.options.model,
        "gen_ai.response.id": record.request.request_id,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "hilora.outcome": record.outcome,
    }
    sampling = record.request.sampling
    given = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    attributes |= {f"gen_ai.request.{name}": value for name, value in given.items() if value is not None}
    if record.ttft_seconds is not None:
        attributes["hilora.ttft_seconds"] = record.ttft_seconds
    if record.route is not None:
        attributes |= route_attributes(record.route)
    span = parent.child(operation, kind=SpanKind.CLIENT, started_at=record.started_at, attributes=attributes)
    if record.outcome == "failed":
        span.fail(record.error_code or "internal_error")
    if record.route is not None:
        route = record.route
        began = record.started_at
        for name, seconds in (("hilora.encode", route.encode_seconds), ("hilora.decide", route.decide_seconds)):
            part = span.child(name, kind=SpanKind.INTERNAL, started_at=began, attributes={})
            began += seconds
            part.end(ended_at=began)
    span.end(ended_at=record.started_at + record.seconds)


def route_attributes(route: RouteResult) -> dict[str, AttributeValue]:
    """What a decision says of itself."""
    decision = route.decision
    attributes: dict[str, AttributeValue] = {
        "hilora.route.mode": decision.mode.value,
        "hilora.route.adapters": [budget.adapter_name for budget in decision.plan.budgets[:_MAX_ADAPTERS]],
        "hilora.route.num_rocs": decision.plan.num_rocs,
        "hilora.route.is_out_of_distribution": decision.is_out_of_distribution,
        "hilora.route.plan_digest": decision.plan.digest,
        "hilora.route.catalog_generation": decision.plan.catalog_generation,
        "hilora.route.encode_seconds": route.encode_seconds,
        "hilora.route.decide_seconds": route.decide_seconds,
    }
    if route.strategy is not None:
        attributes["hilora.route.strategy"] = route.strategy
    if route.session is not None:
        attributes["hilora.route.session_verdict"] = route.session.verdict.value
    if decision.candidates:
        attributes["hilora.route.top_posterior"] = max(candidate.posterior for candidate in decision.candidates)
    return attributes
