"""Decides whether an adapter's files can be served, before anything of them is stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilora.adapter import LoRAAdapter
from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.peft_format import check_against_base, parse_peft_config, read_peft_adapter, with_base_names
from services.registry.adapter_files import CONFIG_FILE, SAMPLES_FILE, WEIGHTS_FILE
from services.registry.artifact import source_digest
from services.registry.ports import BaseModel, TensorFileReader
from services.registry.profiling import read_samples

_MAX_CONFIG_BYTES = 1024 * 1024
_EXPERTS = ".experts."


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationLimits:
    """How large an adapter may be."""

    max_lora_rank: int
    max_eager_bytes: int
    """Weights up to this size are read while the client waits, larger ones by the ingest process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidatedAdapter:
    """Files that passed every check."""

    adapter: LoRAAdapter
    texts: tuple[str, ...]
    source_sha256: str


class AdapterValidator:
    """Checks a folder of adapter files against the served base.

    Args:
        reader: reads the weights.
        base: the served base model.
        limits: how large an adapter may be.
    """

    def __init__(self, *, reader: TensorFileReader, base: BaseModel, limits: ValidationLimits) -> None:
        self._reader = reader
        self._base = base
        self._limits = limits

    def check_upload(self, folder: Path) -> None:
        """All that can be found out while the client waits. Blocking.

        Raises:
            InvalidAdapter: and its subclasses, with the first thing that is wrong.
        """
        if (folder / WEIGHTS_FILE).exists() and (folder / WEIGHTS_FILE).stat().st_size <= self._limits.max_eager_bytes:
            self.validate(folder)
            return
        config = _read_config(folder)
        self._check_header(folder, config)
        read_samples(folder / SAMPLES_FILE)

    def validate(self, folder: Path) -> ValidatedAdapter:
        """Every check. Blocking.

        Raises:
            InvalidAdapter: and its subclasses, with the first thing that is wrong.
        """
        config = _read_config(folder)
        self._check_header(folder, config)
        base_modules = self._base.modules()
        adapter = with_base_names(
            read_peft_adapter(config=config, tensors=self._reader.tensors(folder / WEIGHTS_FILE)),
            base_modules=base_modules,
        )
        self._check_rank(adapter.lora_rank, place=WEIGHTS_FILE)
        check_against_base(adapter, base_modules=base_modules)
        texts = read_samples(folder / SAMPLES_FILE)
        return ValidatedAdapter(adapter=adapter, texts=texts, source_sha256=_digest(folder, texts))

    def digest(self, folder: Path) -> str:
        """The identity of the files as received. Blocking. Raises InvalidAdapter if one is missing."""
        _read_config(folder)
        _require(folder / WEIGHTS_FILE)
        return _digest(folder, read_samples(folder / SAMPLES_FILE))

    def _check_header(self, folder: Path, config: dict[str, Any]) -> None:
        """Refuse a rank above the cap before any tensor is read, so that no upload costs more than it may."""
        _require(folder / WEIGHTS_FILE)
        stacked = parse_peft_config(config).target_parameters
        for name, tensor in self._reader.header(folder / WEIGHTS_FILE).items():
            # Stacked experts show the product of rank and number of experts: they are counted once they are read, and
            # cannot be larger than the base has experts. A base's own weight that PEFT saved along has no rank.
            if tensor.ndim == 2 and "lora_" in name and not (stacked and _EXPERTS in name):
                self._check_rank(min(tensor.shape, default=0), place=name[:120])

    def _check_rank(self, rank: int, *, place: str) -> None:
        if rank > self._limits.max_lora_rank:
            raise AdapterShapeMismatch(
                f"{place} has rank {rank}; this registry's limit is {self._limits.max_lora_rank}.",
                code="rank_too_large",
                remedy="Compress the adapter to a lower rank, or have the operator raise "
                "HILORA_REGISTRY_MAX_LORA_RANK.",
                place=place,
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    _require(path)
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise _invalid_config("it is larger than any honest one")
    try:
        config: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _invalid_config(f"it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _invalid_config("it is not a JSON object")
    return config


def _digest(folder: Path, texts: tuple[str, ...]) -> str:
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        weights_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return source_digest(config=(folder / CONFIG_FILE).read_bytes(), weights_sha256=weights_sha256, texts=texts)


def _require(path: Path) -> None:
    if not path.is_file():
        raise InvalidAdapter(
            f"{path.name} is missing.",
            code="missing_file",
            remedy=f"An adapter needs {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's save_pretrained writes them.",
            place=path.name,
        )


def _invalid_config(reason: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{CONFIG_FILE} is refused: {reason}.",
        code="invalid_adapter_config",
        remedy="Send the file as PEFT's save_pretrained wrote it.",
        place=CONFIG_FILE,
    )
