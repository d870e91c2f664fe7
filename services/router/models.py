"""Which values of `model` there are and what each means. An unknown name is an error, never the base in silence."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import PurePath

from hilora.access import Requester, TrustTier
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.version_selector import split_reference
from services.router.catalog import CatalogAdapter, CatalogView
from services.router.ports import Catalog, Workers
from services.router.routing_options import AUTO_MODEL, BASE_MODEL, RoutingOptions
from services.router.routing_rules import names_strategy, strategy_of_model


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicModel:
    """One line of the list of models."""

    model_id: str
    created_at: int
    """Unix seconds."""
    root: str
    """What the model is a version of: itself for the base, the immutable adapter version for an adapter."""
    parent: str | None
    """The base's public name, for everything that runs on it."""
    max_model_len: int | None


class ModelDirectory:
    """Names and meanings of models.

    Args:
        catalog: the registered adapters.
        workers: who knows the base.
        base_model_name: public name of the base; None takes the last part of what the workers report.
        min_trust_tier: adapters below exist for nobody.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        workers: Workers,
        base_model_name: str | None,
        min_trust_tier: TrustTier = TrustTier.UNTRUSTED,
    ) -> None:
        self._min_trust_tier = min_trust_tier
        self._catalog = catalog
        self._workers = workers
        self._base_model_name = base_model_name
        self._started_at = int(time.time())

    @property
    def base_name(self) -> str:
        """Public name of the base; `base` as long as neither the settings nor a worker gave one."""
        if self._base_model_name:
            return self._base_model_name
        reported = self._workers.fleet().base_model
        if not reported:
            return BASE_MODEL
        # A folder on the worker's disk is nobody's business; a hub id ("owner/name") is the model's name.
        return PurePath(reported).name if PurePath(reported).is_absolute() else reported

    def is_base(self, model: str) -> bool:
        """Whether a `model` value means the base alone."""
        return model in {BASE_MODEL, self.base_name}

    def requester(self, options: RoutingOptions) -> Requester:
        """On whose behalf a request looks at adapters."""
        return self._requester(options.tenant, options.min_trust_tier)

    def adapter(self, model: str, view: CatalogView, requester: Requester) -> CatalogAdapter:
        """The adapter version a `model` value means: `name`, `name@version`, or an alias of one of them.

        Raises:
            UnknownAdapter: `model_not_found`; also for an adapter that does not exist for the requester.
        """
        found = _resolve(model, view)
        if found is None or not found.access.admits(requester):
            raise self._not_found(model)
        return found

    def all_models(self, tenant: str | None = None) -> list[PublicModel]:
        """`auto`, the base, every adapter by name, then every alias, as far as they exist for a tenant.

        `auto:<strategy>` works, too, and is not listed: whoever offers the list to a person means models, and the
        strategies are the same everywhere.

        Raises:
            RegistryUnavailable: before the first snapshot.
        """
        view = self._catalog.view()
        requester = self._requester(tenant)
        listed: list[PublicModel] = []
        for model_id in (*sorted(view.adapters), *sorted(view.aliases.keys() - view.adapters.keys())):
            found = _resolve(model_id, view)
            if found is not None and found.access.admits(requester):
                listed.append(self._public(model_id, found))
        return [self._auto(), self._base(), *listed]

    def model(self, model_id: str, tenant: str | None = None) -> PublicModel:
        """One model by its `model` value, as far as it exists for a tenant.

        Raises:
            UnknownAdapter: `model_not_found`; `unknown_strategy`, for `auto:` and a name that is none.
            RegistryUnavailable: before the first snapshot.
        """
        if model_id and names_strategy(model_id):
            strategy_of_model(model_id)
            return self._auto(model_id)
        if self.is_base(model_id):
            return self._base()
        return self._public(model_id, self.adapter(model_id, self._catalog.view(), self._requester(tenant)))

    def _requester(self, tenant: str | None, asked: TrustTier | None = None) -> Requester:
        floor = self._min_trust_tier
        tier = asked if asked is not None and asked.is_at_least(floor) else floor
        return Requester(tenant=tenant, min_trust_tier=tier)

    def _auto(self, model_id: str = AUTO_MODEL) -> PublicModel:
        return self._describe(model_id, created_at=self._started_at, root=AUTO_MODEL, parent=self.base_name)

    def _base(self) -> PublicModel:
        return self._describe(self.base_name, created_at=self._started_at, root=self.base_name, parent=None)

    def _public(self, model_id: str, adapter: CatalogAdapter) -> PublicModel:
        return self._describe(
            model_id,
            created_at=int(adapter.created_at),
            root=adapter.adapter_id,
            parent=self.base_name,
        )

    def _describe(self, model_id: str, *, created_at: int, root: str, parent: str | None) -> PublicModel:
        max_model_len = self._workers.fleet().max_model_len
        return PublicModel(
            model_id=model_id, created_at=created_at, root=root, parent=parent, max_model_len=max_model_len
        )

    def _not_found(self, model: str) -> UnknownAdapter:
        return UnknownAdapter(
            f"The model {model!r} does not exist.",
            code="model_not_found",
            remedy=f"Use {AUTO_MODEL!r}, {self.base_name!r} or an adapter that GET /v1/models lists.",
            place="model",
        )


def _resolve(model: str, view: CatalogView) -> CatalogAdapter | None:
    """The adapter version that a `model` value means. A name goes before an alias."""
    if model not in view.adapters:
        model = view.aliases.get(model, model)
    try:
        adapter_name, selector = split_reference(model)
    except InvalidInput:
        return None
    adapter = view.adapters.get(adapter_name)
    return adapter if adapter is None or selector is None else adapter.selected(selector)
