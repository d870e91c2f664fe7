"""Adapters of other methods, expanded exactly into plain factors.

One protocol, one table: an importer recognises its files by their config or their tensors' names, and turns them into
the factors that compute the same. What none of the table recognises is read as PEFT's own LoRA.

    RaSA       2503.12576   ranks shared by all layers                    `rasa`
    BeamLoRA   2502.13604   a learned importance per rank                 `beamlora`
    SD-LoRA    2501.13198   a sum of earlier tasks' directions            `sd_lora`
    SMoRA      2501.15103   ranks that a learned gate chooses from        `smora`

docs/algorithm.md, section 1.1, has the formulas and the layouts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hilora.finding import Refuse, raise_at_once
from hilora.importers.beamlora import BeamLoraImporter
from hilora.importers.protocol import AdapterImporter, ImportedAdapter
from hilora.importers.rasa import RasaImporter
from hilora.importers.sd_lora import SdLoraImporter
from hilora.importers.smora import SmoraImporter
from hilora.peft_format import pair_factors
from hilora.peft_targets import find_untargeted

__all__ = ["IMPORTERS", "PLAIN_FORMAT", "AdapterImporter", "ImportedAdapter", "import_adapter"]

PLAIN_FORMAT = "peft"
"""`ImportedAdapter.source_format` of a plain LoRA."""

IMPORTERS: tuple[AdapterImporter, ...] = (RasaImporter(), BeamLoraImporter(), SdLoraImporter(), SmoraImporter())
"""In the order in which they are asked; at most one recognises an adapter."""


def import_adapter(
    *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse = raise_at_once
) -> ImportedAdapter:
    """Plain factors of an adapter of any known format.

    Nothing is asked of the values, so that meta tensors do, and tell all but the values: `peft_format.check_values`
    looks at those.

    Args:
        config: the content of `adapter_config.json`.
        tensors: the content of `adapter_model.safetensors`.
        refuse: called with each reason for a refusal; the first is raised by default. Where it returns, the module it
            is about is left out.

    Raises:
        InvalidAdapter: and its subclasses, as `peft_format.read_peft_adapter` does.
    """
    for importer in IMPORTERS:
        if importer.recognises(config, tensors.keys()):
            return importer.expand(config=config, tensors=tensors, refuse=refuse)
    adapter = pair_factors(config=config, tensors=tensors, refuse=refuse)
    untargeted = find_untargeted(config, adapter.modules)
    return ImportedAdapter(
        adapter=adapter, source_format=PLAIN_FORMAT, notes=() if untargeted is None else (untargeted,)
    )
