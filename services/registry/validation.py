"""Decides whether an adapter's files can be served, before anything of them is stored.

All that is wrong is found at once. Names, shapes and ranks are read from the header alone; values are looked at only if
the header claims no more than an adapter may cost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hilora.adapter import LoRAAdapter
from hilora.adapter_review import (
    compare_base_names,
    describe_scaling,
    find_dead_components,
    find_few_samples,
    find_tied_modules,
)
from hilora.compression import Squeeze, SqueezedAdapter, squeeze
from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Finding, RefusalLog, Refuse, Severity
from hilora.importers import ImportedAdapter, import_adapter
from hilora.peft_format import check_against_base, check_values, with_base_names
from services.registry.adapter_files import CONFIG_FILE, SAMPLES_FILE, WEIGHTS_FILE
from services.registry.artifact import source_digest
from services.registry.ports import BaseModel, TensorFileReader
from services.registry.profiling import read_samples_if_any
from services.registry.strict_json import parse_strictly
from services.registry.validation_report import ValidationReport, refusal_of, report_of

_MAX_CONFIG_BYTES = 1024 * 1024
_MAX_CONFIG_VALUES = 200_000
_SQUEEZABLE = 8
"""An adapter that is to be compressed may have so many times the rank that is served."""
_MALFORMED = "invalid_adapter_config"
_RANK_MISMATCH = "rank_mismatch"


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
    """As it is to be served: expanded from its method's own form, compressed if that was asked for."""
    texts: tuple[str, ...]
    """The sample texts that came along; may be none."""
    source_sha256: str
    source_format: str
    """The method its files belong to; `peft` for a plain LoRA."""
    report: ValidationReport
    energy_kept: float | None = None
    """Share of the update's energy that a compression left."""


@dataclass(kw_only=True)
class _Examination:
    """What is known so far."""

    log: RefusalLog
    notes: list[Finding]
    imported: ImportedAdapter | None = None
    texts: tuple[str, ...] = ()


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

    def check_upload(self, folder: Path, *, how: Squeeze | None = None) -> None:
        """All that can be found out while the client waits. Blocking.

        Args:
            folder: of the files.
            how: the compression that was asked for.

        Raises:
            InvalidAdapter: and its subclasses; `details` has the whole report.
        """
        weights = folder / WEIGHTS_FILE
        is_small = weights.exists() and weights.stat().st_size <= self._limits.max_eager_bytes
        _finished(self._examine(folder, how, has_values=is_small))

    def validate(self, folder: Path, *, how: Squeeze | None = None) -> ValidatedAdapter:
        """Every check of the adapter alone; and the compression, if one was asked for. Blocking.

        Args:
            folder: of the files.
            how: the compression that was asked for.

        Raises:
            InvalidAdapter: and its subclasses; `details` has the whole report.
        """
        found = self._examine(folder, how, has_values=True)
        imported, report = _finished(found)
        adapter, energy_kept = imported.adapter, None
        if how is not None:
            squeezed = squeeze(adapter, how)
            report = report.adding([_describe_squeeze(imported.adapter, squeezed)])
            adapter, energy_kept = squeezed.adapter, squeezed.total_energy_kept
            self._check_ranks(adapter, self._limits.max_lora_rank, found.log)
            _finished(found)
        return ValidatedAdapter(
            adapter=adapter,
            texts=found.texts,
            source_sha256=_digest(folder, found.texts, how),
            source_format=imported.source_format,
            report=report,
            energy_kept=energy_kept,
        )

    def digest(self, folder: Path, *, how: Squeeze | None = None) -> str:
        """The identity of the files as received, and of what was asked to be made of them. Blocking. Raises
        InvalidAdapter if one is missing."""
        _read_config(folder)
        _require(folder / WEIGHTS_FILE)
        return _digest(folder, read_samples_if_any(folder / SAMPLES_FILE), how)

    def _examine(self, folder: Path, how: Squeeze | None, *, has_values: bool) -> _Examination:
        found = _Examination(log=RefusalLog(), notes=[])
        try:
            self._examine_weights(folder, _read_config(folder), how, found, has_values=has_values)
        except InvalidAdapter as error:
            found.log(error)  # a file that cannot be read at all: nothing more can be said about it
        try:
            found.texts = read_samples_if_any(folder / SAMPLES_FILE)
            few = find_few_samples(len(found.texts))
            found.notes += [few] if few else []
        except InvalidAdapter as error:
            found.log(error)
        return found

    def _examine_weights(
        self, folder: Path, config: dict[str, Any], how: Squeeze | None, found: _Examination, *, has_values: bool
    ) -> None:
        _require(folder / WEIGHTS_FILE)
        header = self._reader.header(folder / WEIGHTS_FILE)
        modules = self._base.modules()
        outline = _named_like(import_adapter(config=config, tensors=header, refuse=found.log), self._base)
        _drop_consequences(found.log)
        rank_limit = self._limits.max_lora_rank * (1 if how is None else _SQUEEZABLE)
        has_sound_ranks = self._check_ranks(outline.adapter, rank_limit, found.log)
        check_against_base(outline.adapter, base_modules=modules, refuse=found.log)
        found.imported = outline
        found.notes += [*outline.notes, *self._review(outline.adapter)]
        # What an expansion would make of the file is bounded by what the base could hold, before it is made.
        is_bounded = _num_elements(outline.adapter) <= rank_limit * sum(map(sum, modules.values()))
        # And where the list of what is wrong is full, reading the values as well would tell nobody anything.
        if not (has_values and has_sound_ranks and is_bounded) or found.log.is_full:
            return
        tensors = self._reader.tensors(folder / WEIGHTS_FILE)
        # Whatever is wrong with names and shapes was said about the header already.
        found.imported = _named_like(import_adapter(config=config, tensors=tensors, refuse=_ignore), self._base)
        check_values(found.imported.adapter, refuse=found.log)
        dead = find_dead_components(found.imported.adapter)
        found.notes += [dead] if dead else []

    def _review(self, adapter: LoRAAdapter) -> list[Finding]:
        found = (
            compare_base_names(adapter.base_model, self._base.name),
            find_tied_modules(adapter, self._base.tied_modules()),
            describe_scaling(adapter) if adapter.modules else None,
        )
        return [finding for finding in found if finding is not None]

    def _check_ranks(self, adapter: LoRAAdapter, limit: int, refuse: Refuse) -> bool:
        """Refuse ranks above the cap before any tensor is read, so that no upload costs more than it may."""
        too_large = {path: f.lora_rank for path, f in adapter.modules.items() if f.lora_rank > limit}
        for path, rank in too_large.items():
            refuse(
                AdapterShapeMismatch(
                    f"{path[:120]} has rank {rank}; this registry's limit is {limit}.",
                    code="rank_too_large",
                    remedy=f'Compress the adapter: send squeeze={{"rank": {self._limits.max_lora_rank}}} with it; or '
                    "have the operator raise HILORA_REGISTRY_MAX_LORA_RANK.",
                    place=path[:120],
                )
            )
        return not too_large


def _finished(found: _Examination) -> tuple[ImportedAdapter, ValidationReport]:
    report = report_of(found.log, found.notes)
    if not report.is_accepted:
        raise refusal_of(found.log, report)
    assert found.imported is not None, "nothing was refused, so everything was read"
    return found.imported, report


def _named_like(imported: ImportedAdapter, base: BaseModel) -> ImportedAdapter:
    return replace(imported, adapter=with_base_names(imported.adapter, base_modules=base.modules()))


def _num_elements(adapter: LoRAAdapter) -> int:
    return sum(factors.lora_a.numel() + factors.lora_b.numel() for factors in adapter.modules.values())


def _drop_consequences(log: RefusalLog) -> None:
    """Where the config's own rank cannot be read, what was found about ranks is not true."""
    if any(error.code == _MALFORMED for error in log.errors):
        log.errors[:] = [error for error in log.errors if error.code != _RANK_MISMATCH]


def _ignore(_: InvalidAdapter) -> None:
    """A `Refuse` for what was refused before."""


def _describe_squeeze(source: LoRAAdapter, squeezed: SqueezedAdapter) -> Finding:
    return Finding(
        code="squeezed",
        severity=Severity.INFO,
        place="squeeze",
        message=f"The adapter was compressed from rank {source.lora_rank} to {squeezed.adapter.lora_rank}; "
        f"{squeezed.total_energy_kept:.4%} of its energy is left, at least {min(squeezed.energy_kept.values()):.4%} "
        "in every module.",
        remedy="",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    _require(path)
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise _invalid_config("it is larger than any honest one")
    try:
        config: Any = parse_strictly(path.read_bytes(), max_values=_MAX_CONFIG_VALUES, encoding="utf-8-sig")
    except ValueError as error:
        raise _invalid_config(f"it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _invalid_config("it is not a JSON object")
    return config


def _digest(folder: Path, texts: tuple[str, ...], how: Squeeze | None) -> str:
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        weights_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    config = (folder / CONFIG_FILE).read_bytes()
    if how is not None:
        config += f"\nsqueeze rank={how.rank} energy={how.energy}".encode()
    return source_digest(config=config, weights_sha256=weights_sha256, texts=texts)


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
