"""The router's ports in memory, for tests of its use cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.access import AdapterAccess
from hilora.character_grams import SampleGrams
from hilora.errors import RegistryUnavailable, Unavailable
from hilora.gaussian_index import DenseGaussianIndex, IndexBuilder
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from services.router.answer import (
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    TextDelta,
    TokenizedPrompt,
    WorkerEvent,
)
from services.router.catalog import CatalogAdapter, CatalogView
from services.router.decision_cache import DecisionCache
from services.router.infra.local_memory import LocalMemory
from services.router.models import ModelDirectory
from services.router.plan_record import PlanRecord, SessionRecord
from services.router.plans import Plans
from services.router.ports import WorkerFleet
from services.router.request import ChatPrompt, Prompt, WorkOrder
from services.router.routing import RouteText
from services.router.routing_rules import RoutingDefaults
from services.router.sessions import SessionMatching, Sessions
from services.router.traffic import TrafficRules, TrafficWatch
from tests.fakes.router_encoder import HashEncoder


def catalog_view(
    texts_of: dict[str, Sequence[str]],
    *,
    catalog_generation: int = 1,
    router_generation: int | None = None,
    gone: Iterable[str] = (),
    ignored: dict[str, str] | None = None,
    revision: str = "1",
    access: Mapping[str, AdapterAccess] | None = None,
    aliases: Mapping[str, str] | None = None,
    build_index: IndexBuilder = DenseGaussianIndex,
) -> CatalogView:
    """A picture with one adapter of rank 8 for each task, fitted with `HashEncoder`. `gone` ones are fitted only."""
    encoder = HashEncoder()
    profiles = [
        AdapterProfile(
            adapter_id=f"{name}@{revision}",
            adapter_name=name,
            lora_rank=8,
            samples_ME=encoder.encode(list(texts)),
            grams=SampleGrams.of(texts),
        )
        for name, texts in texts_of.items()
    ]
    fitted_at = catalog_generation if router_generation is None else router_generation
    return CatalogView(
        adapters={
            profile.adapter_name: CatalogAdapter(
                adapter_id=profile.adapter_id,
                adapter_name=profile.adapter_name,
                revision=revision,
                lora_rank=8,
                created_at=1_700_000_000.9,
                access=(access or {}).get(profile.adapter_name, AdapterAccess()),
            )
            for profile in profiles
            if profile.adapter_name not in set(gone)
        },
        catalog_generation=catalog_generation,
        router=SequenceRouter(profiles, catalog_generation=fitted_at, build_index=build_index),
        router_generation=fitted_at,
        gone=frozenset(gone),
        ignored=ignored or {},
        aliases=aliases or {},
        fitted_names=frozenset(texts_of),
    )


def local_sessions(*, matching: SessionMatching = SessionMatching.PREFIX) -> Sessions:
    """Sessions in this process's memory."""
    return Sessions(LocalMemory[SessionRecord](ttl_seconds=60.0, max_records=1000), matching=matching)


def local_plans() -> Plans:
    """Plans in this process's memory."""
    return Plans(LocalMemory[PlanRecord](ttl_seconds=60.0, max_records=1000))


def route_text(
    catalog: InMemoryCatalog,
    *,
    models: ModelDirectory,
    embedder: FakeEmbedder | None = None,
    sessions: Sessions | None = None,
    plans: Plans | None = None,
    decisions: DecisionCache | None = None,
    **defaults: Any,
) -> RouteText:
    """The use case on fakes. `defaults` are those of `RoutingDefaults`."""
    return RouteText(
        catalog=catalog,
        embedder=embedder or FakeEmbedder(),
        models=models,
        defaults=RoutingDefaults(**{"max_routed_chars": 1000, **defaults}),
        plans=plans or local_plans(),
        sessions=sessions or local_sessions(),
        decisions=decisions,
    )


def traffic_watch(catalog: InMemoryCatalog, **rules: Any) -> TrafficWatch:
    """A watch whose clocks stand still."""
    return TrafficWatch(
        catalog=catalog, rules=TrafficRules(**rules), monotonic=lambda: 0.0, unix_time=lambda: 1_800_000_000.0
    )


class InMemoryCatalog:
    """Shows what it is given; None stands for "no snapshot yet"."""

    def __init__(self, view: CatalogView | None = None) -> None:
        self.current = view
        self.next_view: CatalogView | None = None
        """Takes the place of `current` when somebody waits."""
        self.is_following = True
        self.waits: list[int] = []

    def view(self) -> CatalogView:
        if self.current is None:
            raise RegistryUnavailable("no catalogue", code="catalog_not_loaded")
        return self.current

    async def wait_beyond(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        self.waits.append(catalog_generation)
        if self.next_view is None:
            return False
        self.current, self.next_view = self.next_view, None
        return True


class FakeEmbedder:
    """`HashEncoder` without a thread. `is_loaded` off stands for an encoder on its way."""

    def __init__(self, *, is_loaded: bool = True) -> None:
        self.is_loaded = is_loaded
        self.texts: list[str] = []
        self.seconds = 0.0
        """Time that a text takes."""

    @property
    def encoder_id(self) -> str | None:
        return "hash:1" if self.is_loaded else None

    async def embed(self, text: str) -> NDArray[np.float32]:
        if not self.is_loaded:
            raise Unavailable("loading", code="encoder_loading")
        self.texts.append(text)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return HashEncoder().encode([text])[0]

    async def count_tokens(self, texts: Sequence[str]) -> int:
        return HashEncoder().count_tokens(texts)


class FakeWorkers:
    """Answers each order with the same words, or with the errors it was given, in turn."""

    def __init__(self, *, words: Sequence[str] = ("one", " two")) -> None:
        self.words = tuple(words)
        self.errors_before: list[Exception] = []
        self.error_in_the_middle: Exception | None = None
        self.orders: list[WorkOrder] = []
        self.num_closed_early = 0
        self.num_live = 1
        self.catalog_generation = 1
        self.base_model: str | None = "/models/tiny-base"
        self.max_model_len: int | None = 512

    def fleet(self) -> WorkerFleet:
        return WorkerFleet(
            num_configured=1,
            num_live=self.num_live,
            highest_catalog_generation=self.catalog_generation if self.num_live else 0,
            base_model=self.base_model,
            max_model_len=self.max_model_len,
        )

    async def generate(self, order: WorkOrder) -> AsyncGenerator[WorkerEvent]:
        self.orders.append(order)
        if self.errors_before:
            raise self.errors_before.pop(0)
        try:
            choices = range(order.request.sampling.num_choices)
            yield GenerationStarted(num_prompt_tokens=3)
            for position, word in enumerate(self.words):
                for choice_idx in choices:
                    await asyncio.sleep(0)
                    yield TextDelta(text=word, token_ids=(position,), choice_idx=choice_idx)
            if self.error_in_the_middle is not None:
                raise self.error_in_the_middle
            for choice_idx in choices:
                yield GenerationFinished(
                    finish_reason=FinishReason.STOP,
                    num_prompt_tokens=3,
                    num_completion_tokens=len(self.words),
                    budgets_used=order.plan.budgets,
                    ttft_seconds=0.1,
                    e2e_latency_seconds=0.2,
                    choice_idx=choice_idx,
                )
        except GeneratorExit:
            self.num_closed_early += 1
            raise

    async def tokenize(self, prompt: Prompt, *, omits_special_tokens: bool = False) -> TokenizedPrompt:
        words = () if isinstance(prompt, ChatPrompt) else tuple(prompt.text.split())
        if not omits_special_tokens:
            words = ("<s>", *words)
        return TokenizedPrompt(token_ids=tuple(range(len(words))), tokens=words, max_model_len=512)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return " ".join(f"t{token_id}" for token_id in token_ids)
