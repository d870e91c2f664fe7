"""RaSA (arXiv 2503.12576): each layer has a few ranks of its own and uses those of all layers, weighted.

    delta_l = [B_l B_S] diag(D_l) [A_l; A_S],     A_l [r-k, D], A_S [k L, D], D_l [r-k + k L]
    =>  A' = diag(D_l) [A_l; A_S],  B' = [B_l B_S],  scaling 1: `rasa_alpha` is only how D_l begins

Layout, as the authors' fork of PEFT saves it with `peft_type: RASA`, `r`, `rasa_k`:

    base_model.model.<path>.rasa_A.weight             [r-k, D]
    base_model.model.<path>.rasa_B.weight             [O, r-k]
    base_model.model.<path>.rasa_mixing.weight        [r-k + k L]
    base_model.rasa_shared_A.<kind>.weight            [k L, D]     one for all layers of a kind
    base_model.rasa_shared_B.<kind>.weight            [O, k L]

where the kind of `model.layers.3.self_attn.q_proj` is `self_attn__q_proj`. Shared ranks expand into every layer: an
adapter grows by a factor of about 1 + k L / (r - k), and Squeeze brings it back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Refuse
from hilora.importers.protocol import ImportedAdapter, as_plain_lora, is_of_type
from hilora.peft_config import parse_peft_config
from hilora.peft_tensors import module_name, unexpected_tensor

FORMAT = "rasa"
_OWN_FIELDS = frozenset({"rasa_k", "rasa_alpha", "rasa_dropout", "lora_alpha"})
_PRIVATE_NAME = re.compile(r"(?P<path>.+)\.rasa_(?P<part>A|B|mixing)(?:\.default)?\.weight")
_SHARED_NAME = re.compile(r"(?:base_model\.)?rasa_shared_(?P<part>[AB])(?:\.default)?\.(?P<kind>[^.]+)\.weight")
_LAYER = re.compile(r"layers\.\d+\.(?P<module>.+)")

Parts = Mapping[str, torch.Tensor]


class RasaImporter:
    """See `AdapterImporter`."""

    def recognises(self, config: Mapping[str, object], tensor_names: Collection[str]) -> bool:
        """See `AdapterImporter.recognises`."""
        return is_of_type(config, "RASA") or any(_SHARED_NAME.fullmatch(name) for name in tensor_names)

    def expand(
        self, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse
    ) -> ImportedAdapter:
        """See `AdapterImporter.expand`."""
        # PEFT wants a scaling of a plain LoRA; RaSA's is part of the mixing weights.
        plain = parse_peft_config(as_plain_lora(config, without=_OWN_FIELDS) | {"lora_alpha": 1}, refuse=refuse)
        private: dict[str, dict[str, torch.Tensor]] = {}
        shared: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            own, common = _PRIVATE_NAME.fullmatch(module_name(name)), _SHARED_NAME.fullmatch(name)
            if own is not None:
                private.setdefault(own["path"], {})[own["part"]] = tensor
            elif common is not None:
                shared.setdefault(common["kind"], {})[common["part"]] = tensor
            else:
                refuse(unexpected_tensor(name))
        modules: dict[str, LoRAFactors] = {}
        for path, parts in sorted(private.items()):
            factors = _factors(path, parts, shared.get(_kind_of(path), {}), refuse)
            if factors is not None:
                modules[path] = factors
        if not private:
            refuse(_incomplete("adapter_model.safetensors", {"rasa_A", "rasa_B", "rasa_mixing"}))
        return ImportedAdapter(adapter=LoRAAdapter(base_model=plain.base_model, modules=modules), source_format=FORMAT)


def _kind_of(path: str) -> str:
    match = _LAYER.search(path)
    return match["module"].replace(".", "__") if match else ""


def _factors(path: str, private: Parts, shared: Parts, refuse: Refuse) -> LoRAFactors | None:
    missing = {f"rasa_{part}" for part in ("A", "B", "mixing") if part not in private}
    missing |= {f"rasa_shared_{part}" for part in ("A", "B") if part not in shared}
    if missing:
        refuse(_incomplete(path, missing))
        return None
    downs, ups, mixing = (private["A"], shared["A"]), (private["B"], shared["B"]), private["mixing"]
    rank = sum(part.shape[0] for part in downs if part.ndim)
    is_sound = (
        all(part.ndim == 2 for part in (*downs, *ups))
        and mixing.shape == (rank,)
        and downs[0].shape[1] == downs[1].shape[1]
        and ups[0].shape[0] == ups[1].shape[0]
        and [part.shape[0] for part in downs] == [part.shape[1] for part in ups]
    )
    if not is_sound:
        refuse(
            AdapterShapeMismatch(
                f"The parts of {path[:120]} do not fit together: A {tuple(downs[0].shape)} and {tuple(downs[1].shape)}"
                f", B {tuple(ups[0].shape)} and {tuple(ups[1].shape)}, mixing {tuple(mixing.shape)}.",
                code="rank_mismatch",
                remedy="Upload all tensors of one RaSA checkpoint.",
                place=path[:120],
            )
        )
        return None
    lora_a = torch.cat([part.to(torch.float64) for part in downs]) * mixing.to(torch.float64)[:, None]
    return LoRAFactors(lora_a=lora_a, lora_b=torch.cat([part.to(torch.float64) for part in ups], dim=1), scaling=1.0)


def _incomplete(place: str, missing: Collection[str]) -> InvalidAdapter:
    return InvalidAdapter(
        f"{place[:120]} lacks {', '.join(sorted(missing))}.",
        code="unpaired_factor",
        remedy="Upload the complete adapter_model.safetensors; what is shared is base_model.rasa_shared_A and _B.",
        place=place[:120],
    )
