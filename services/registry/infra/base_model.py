"""What the served base model looks like: the modules that adapters may target and their shapes, without its weights."""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hilora.errors import InvalidInput
from hilora.target_layer import target_features, tied_modules
from services.registry.infra.durable import replace_durably

Modules = MappingProxyType[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """What is known of a base."""

    modules: Modules
    tied: frozenset[str]


_LISTING = 4
"""Grows whenever other modules are listed, so that no older list is taken for the whole."""


class TransformersBaseModel:
    """See `BaseModel`: built on torch's meta device from the model's config, once per config.

    Args:
        model: folder or hub name.
        name: what clients call it.
        cache_folder: where the list of modules is kept, so that later starts need not build the model.
    """

    def __init__(self, model: str, *, name: str, cache_folder: Path) -> None:
        self._model = model
        self._name = name
        self._cache_folder = cache_folder
        self._lock = threading.Lock()
        self._listing: _Listing | None = None

    @property
    def name(self) -> str:
        """See `BaseModel.name`."""
        return self._name

    def modules(self) -> Modules:
        """See `BaseModel.modules`. Raises InvalidInput: `base_model_unreadable`."""
        return self._listed().modules

    def tied_modules(self) -> frozenset[str]:
        """See `BaseModel.tied_modules`. Raises like `modules`."""
        return self._listed().tied

    def _listed(self) -> _Listing:
        with self._lock:
            if self._listing is None:
                self._listing = self._cached_listing()
            return self._listing

    def _cached_listing(self) -> _Listing:
        config_file = Path(self._model) / "config.json"
        if not config_file.is_file():
            return _listing_of(self._model)
        key = hashlib.sha256(config_file.read_bytes()).hexdigest()
        cache_file = self._cache_folder / f"base-modules-{_LISTING}-{key[:16]}.json"
        found = _kept_listing(cache_file)
        if found is not None:
            return found
        self._cache_folder.mkdir(parents=True, exist_ok=True)
        # The registry and its ingest process start together: one imports what builds the model, the other one waits.
        with (self._cache_folder / "base-modules.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _kept_listing(cache_file)
            if found is not None:
                return found
            listing = _listing_of(self._model)
            content = {"modules": dict(listing.modules), "tied": sorted(listing.tied)}
            replace_durably(cache_file, json.dumps(content).encode())
        return listing


def _kept_listing(cache_file: Path) -> _Listing | None:
    try:
        listed: dict[str, Any] = json.loads(cache_file.read_bytes())
        return _Listing(
            modules=MappingProxyType({path: (sizes[0], sizes[1]) for path, sizes in listed["modules"].items()}),
            tied=frozenset(listed["tied"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listing_of(model: str) -> _Listing:
    import torch  # with transformers six seconds of import, needed once per base model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        # Code references in a config are not followed: trust_remote_code stays off.
        config: Any = AutoConfig.from_pretrained(model)
        has_encoder = getattr(config, "is_encoder_decoder", False)
        auto_class = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
        with torch.device("meta"):
            skeleton: Any = auto_class.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"The base model {model!r} cannot be read: {error}",
            code="base_model_unreadable",
            remedy="Name a language model's folder or hub id (--base, or HILORA_REGISTRY_BASE_MODEL).",
            place="base_model",
        ) from error
    return _Listing(modules=MappingProxyType(target_features(skeleton)), tied=tied_modules(skeleton))
