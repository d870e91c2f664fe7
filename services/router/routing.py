"""Decide which adapters answer a text, and with how many of their rank-one components."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from hilora.access import Requester
from hilora.errors import InvalidInput
from hilora.routing_plan import RoutingDecision, RoutingMode
from hilora.sequence_routing import RoutingSettings, base_decision, explicit_decision
from services.router.answer import RouteResult
from services.router.catalog import CatalogView
from services.router.models import ModelDirectory
from services.router.ports import Catalog, TextEmbedder
from services.router.routing_options import AUTO_MODEL, RoutingOptions


class RouteText:
    """The use case behind `POST /v1/route`, and the first half of every completion.

    Args:
        catalog: the registered adapters and the model fitted to them.
        embedder: places a text among them.
        models: what a `model` value means.
        mode: how likelihoods become budgets where the client does not say.
        gamma: share of the candidates' ranks that may be active; None keeps the mode's own.
        max_candidates: most adapters in a plan; None keeps the mode's own.
        max_routed_chars: characters at the start of a text that the decision looks at.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        embedder: TextEmbedder,
        models: ModelDirectory,
        mode: RoutingMode,
        gamma: float | None,
        max_candidates: int | None,
        max_routed_chars: int,
    ) -> None:
        self._catalog = catalog
        self._embedder = embedder
        self._models = models
        self._default_options = RoutingOptions(mode=mode, gamma=gamma, max_candidates=max_candidates)
        self._max_routed_chars = max_routed_chars

    async def route(self, text: str, options: RoutingOptions, *, num_runners_up: int = 5) -> RouteResult:
        """Decide for one text.

        Args:
            text: what the request is about.
            options: the client's wishes.
            num_runners_up: adapters that were not chosen but are reported.

        Raises:
            UnknownAdapter: `model_not_found`.
            InvalidInput: `excluded_model`, for a named adapter that is excluded as well.
            RegistryUnavailable: before the first snapshot of the catalogue.
            Unavailable: `encoder_loading`.
        """
        requester = self._models.requester(options)
        view = self._catalog.view()
        encoder_id = self._embedder.encoder_id or ""
        encode_seconds = 0.0
        if options.model in {AUTO_MODEL, ""}:
            started = time.perf_counter()
            z_E = await self._embedder.embed(text[: self._max_routed_chars])
            encode_seconds = time.perf_counter() - started
            # The newest picture: an adapter may have gone while the text was being embedded.
            view = self._catalog.view()
            started = time.perf_counter()
            settings = self._settings_for(options)
            if view.can_choose(requester):
                closed = view.closed_to(requester)
                decision = await asyncio.to_thread(
                    view.router.decide,
                    z_E,
                    settings=settings,
                    request_seed=options.seed,
                    exclude=closed | options.exclude_adapters if options.exclude_adapters else closed,
                    num_runners_up=num_runners_up,
                )
            else:
                # The words must not tell a pool without adapters from one whose adapters are hidden.
                decision = base_decision(
                    catalog_generation=view.router_generation,
                    mode=settings.mode,
                    reason="No adapter is registered: the base model answers alone.",
                    is_out_of_distribution=True,
                )
        else:
            started = time.perf_counter()
            decision = self._named(options, view, requester)
        return RouteResult(
            decision=decision,
            # The one the choice was made from: the names may be a refit ahead of the fitted model.
            catalog_generation=decision.plan.catalog_generation,
            encoder_id=encoder_id or self._embedder.encoder_id or "",
            encode_seconds=encode_seconds,
            decide_seconds=time.perf_counter() - started,
        )

    def _named(self, options: RoutingOptions, view: CatalogView, requester: Requester) -> RoutingDecision:
        if self._models.is_base(options.model):
            return base_decision(catalog_generation=view.catalog_generation)
        adapter = self._models.adapter(options.model, view, requester)
        if adapter.adapter_name in options.exclude_adapters:
            raise InvalidInput(
                f"The adapter {adapter.adapter_name!r} is both named as the model and excluded.",
                code="excluded_model",
                remedy="Drop it from exclude_adapters, or use model 'auto'.",
                place="exclude_adapters",
            )
        return explicit_decision(
            adapter_id=adapter.adapter_id,
            adapter_name=adapter.adapter_name,
            lora_rank=adapter.lora_rank,
            catalog_generation=view.catalog_generation,
        )

    def _settings_for(self, options: RoutingOptions) -> RoutingSettings:
        defaults = self._default_options
        mode = options.mode or defaults.mode
        assert mode is not None, "the constructor sets a mode"
        settings = RoutingSettings.for_mode(mode)
        gamma = options.gamma if options.gamma is not None else defaults.gamma
        max_candidates = options.max_candidates if options.max_candidates is not None else defaults.max_candidates
        if gamma is not None:
            settings = replace(settings, gamma=gamma)
        if max_candidates is not None:
            settings = replace(settings, max_candidates=max_candidates)
        return settings
