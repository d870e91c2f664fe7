"""BeamLoRA (arXiv 2502.13604): a plain LoRA whose ranks carry a learned importance.

    delta = c B diag(p) A,    p = r softmax(g / T)      =>      A' = diag(p) A

Layout, as the authors' fork of PEFT saves it: PEFT's own, with `use_beamlora: true` in the config and a gate
`<path>.lora_gate` `[1, R]` beside each pair of factors. T is not in the file: their code has 0.05, and 0.03 for
learning rates below 1e-4. A config field `beamlora_temperature` says which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Finding, Refuse, Severity
from hilora.importers.protocol import ImportedAdapter, as_plain_lora
from hilora.peft_config import ConfigFields
from hilora.peft_format import pair_factors
from hilora.peft_tensors import module_name

FORMAT = "beamlora"
_TEMPERATURE_FIELD = "beamlora_temperature"
_DEFAULT_TEMPERATURE = 0.05
_OWN_FIELDS = frozenset({"use_beamlora", "only_add_gate", _TEMPERATURE_FIELD})
_NEUTRAL_FIELDS: Mapping[str, object] = {"mora_type": 1, "plora_m": 0.0}
"""Parameters of other methods of the authors' fork, which are off while they have these values."""
_GATE_NAME = re.compile(r"(?P<path>.+)\.lora_gate(?:\.default)?(?:\.weight)?")
_DOWN_NAME = re.compile(r"(?P<path>.+)\.lora_A(?:\.default)?(?:\.weight)?")


class BeamLoraImporter:
    """See `AdapterImporter`."""

    def recognises(self, config: Mapping[str, object], tensor_names: Collection[str]) -> bool:
        """See `AdapterImporter.recognises`."""
        return config.get("use_beamlora") is True or any(_GATE_NAME.fullmatch(name) for name in tensor_names)

    def expand(
        self, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse
    ) -> ImportedAdapter:
        """See `AdapterImporter.expand`."""
        given = config.get(_TEMPERATURE_FIELD)
        temperature = _DEFAULT_TEMPERATURE
        if given is not None:
            temperature = ConfigFields(config, refuse=refuse).finite_number(_TEMPERATURE_FIELD, given)
        gates = {
            match["path"]: tensor
            for name, tensor in tensors.items()
            if (match := _GATE_NAME.fullmatch(module_name(name))) is not None
        }
        plain: dict[str, torch.Tensor] = {}
        gated: set[str] = set()
        for name, tensor in tensors.items():
            bare_name = module_name(name)
            if _GATE_NAME.fullmatch(bare_name):
                continue
            match = _DOWN_NAME.fullmatch(bare_name)
            if match is None or match["path"] not in gates or tensor.ndim != 2:
                plain[name] = tensor
                continue
            gated.add(match["path"])
            plain[name] = _weighted(match["path"], tensor, gates[match["path"]], temperature, refuse)
        for path in gates.keys() - gated:
            refuse(_gate_alone(path))
        neutral = {field for field, value in _NEUTRAL_FIELDS.items() if config.get(field) == value}
        plain_config = as_plain_lora(config, without=_OWN_FIELDS | neutral)
        notes = () if given is not None else (_assumed_temperature(),)
        return ImportedAdapter(
            adapter=pair_factors(config=plain_config, tensors=plain, refuse=refuse), source_format=FORMAT, notes=notes
        )


def importance(gate: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """`p = r softmax(g / T)` of a gate of any shape with R values, as `[R]` in float64; it sums to R."""
    logits = gate.reshape(-1).to(torch.float64) / temperature
    return torch.softmax(logits, dim=0) * logits.shape[0]


def _weighted(path: str, lora_a: torch.Tensor, gate: torch.Tensor, temperature: float, refuse: Refuse) -> torch.Tensor:
    if gate.numel() != lora_a.shape[0] or temperature <= 0:
        refuse(
            AdapterShapeMismatch(
                f"The gate of {path[:120]} has {gate.numel()} values for rank {lora_a.shape[0]} at temperature "
                f"{temperature:g}.",
                code="rank_mismatch",
                remedy="Upload config and weights of one checkpoint, with a beamlora_temperature above 0.",
                place=path[:120],
            )
        )
        return lora_a
    return importance(gate, temperature=temperature)[:, None] * lora_a.to(torch.float64)


def _gate_alone(path: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{path[:120]} has a gate and no lora_A.",
        code="unpaired_factor",
        remedy="Upload the complete adapter_model.safetensors.",
        place=path[:120],
    )


def _assumed_temperature() -> Finding:
    return Finding(
        code="assumed_temperature",
        severity=Severity.WARNING,
        place=_TEMPERATURE_FIELD,
        message=f"The files do not say at which temperature BeamLoRA's gates were trained; {_DEFAULT_TEMPERATURE} was "
        "assumed.",
        remedy='If the learning rate was below 1e-4, add "beamlora_temperature": 0.03 to adapter_config.json.',
    )
