"""What an importer of another method's adapters promises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from hilora.adapter import LoRAAdapter
from hilora.finding import Finding, Refuse


@dataclass(frozen=True, kw_only=True)
class ImportedAdapter:
    """An adapter in plain factors, and what is to be said about how it got there."""

    adapter: LoRAAdapter
    source_format: str
    """The method that its files belong to."""
    notes: tuple[Finding, ...] = ()
    """What the expansion had to assume or leave out."""


class AdapterImporter(Protocol):
    """Reads one method's files. The expansion is exact: the factors compute what the method's own forward pass does."""

    def recognises(self, config: Mapping[str, object], tensor_names: Collection[str]) -> bool:
        """Whether an adapter is of this method, by its config or by names that only this method writes."""
        ...

    def expand(
        self, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse
    ) -> ImportedAdapter:
        """The factors, in the dtype that the products of the tensors have; meta tensors give meta tensors.

        Every reason for a refusal goes to `refuse`; where it returns, the module it is about is left out.
        """
        ...


def is_of_type(config: Mapping[str, object], *names: str) -> bool:
    """Whether `peft_type` is one of the names, which are in capitals, however it is written."""
    peft_type = config.get("peft_type")
    return isinstance(peft_type, str) and peft_type.upper().replace("-", "_") in names


def as_plain_lora(config: Mapping[str, object], *, without: Collection[str]) -> dict[str, object]:
    """The config of the plain LoRA that an expansion gives: PEFT's checks apply to what is left of the method's own."""
    return {"peft_type": "LORA"} | {
        field: value for field, value in config.items() if field not in without and field != "peft_type"
    }
