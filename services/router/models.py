"""Which values of `model` there are and what each means. An unknown name is an error, never the base in silence."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import PurePath

from hilora.errors import UnknownAdapter
from services.router.catalog import CatalogAdapter, CatalogView
from services.router.ports import Catalog, Workers
from services.router.request import AUTO_MODEL, BASE_MODEL


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
    """

    def __init__(self, *, catalog: Catalog, workers: Workers, base_model_name: str | None) -> None:
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

    def adapter(self, model: str, view: CatalogView) -> CatalogAdapter:
        """The adapter a `model` value names.

        Raises:
            UnknownAdapter: `model_not_found`.
        """
        found = view.adapters.get(model)
        if found is None:
            raise self._not_found(model)
        return found

    def all_models(self) -> list[PublicModel]:
        """`auto`, the base, then every adapter by name.

        Raises:
            RegistryUnavailable: before the first snapshot.
        """
        view = self._catalog.view()
        return [
            self._auto(),
            self._base(),
            *(self._public(view.adapters[name]) for name in sorted(view.adapters)),
        ]

    def model(self, model_id: str) -> PublicModel:
        """One model by its `model` value.

        Raises:
            UnknownAdapter: `model_not_found`.
            RegistryUnavailable: before the first snapshot.
        """
        if model_id == AUTO_MODEL:
            return self._auto()
        if self.is_base(model_id):
            return self._base()
        return self._public(self.adapter(model_id, self._catalog.view()))

    def _auto(self) -> PublicModel:
        return self._describe(AUTO_MODEL, created_at=self._started_at, root=AUTO_MODEL, parent=self.base_name)

    def _base(self) -> PublicModel:
        return self._describe(self.base_name, created_at=self._started_at, root=self.base_name, parent=None)

    def _public(self, adapter: CatalogAdapter) -> PublicModel:
        return self._describe(
            adapter.adapter_name,
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
