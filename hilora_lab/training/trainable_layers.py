"""A transformers model whose adapters are frozen and mixed by something that can be trained.

Every linear layer that some adapter touches gets a forward hook that adds `sum_i alpha_i B_i A_i x`; how `alpha` comes
about is a `TokenMixer`'s business, and gradients flow through it to whatever it learns.

Shapes: B examples, T tokens, L mixed adapters, R their largest rank, D in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from hilora.adapter import LoRAAdapter


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFactors:
    """The mixed adapters in one layer, padded with zeros to one rank; an adapter that is not there is all zero."""

    a_LRD: torch.Tensor
    b_LOR: torch.Tensor
    """Scaling folded in."""


class TokenMixer(Protocol):
    """Finds the factors of adapters, token by token."""

    def alphas(self, path: str, x_BTD: torch.Tensor, outputs_BTLO: torch.Tensor) -> torch.Tensor:
        """`[B, T, L]`.

        Args:
            path: the layer's.
            x_BTD: its inputs.
            outputs_BTLO: what each adapter would add.
        """
        ...


class TrainableLayers(AbstractContextManager["TrainableLayers"]):
    """Hooks on a frozen model, for as long as the context lasts.

    Args:
        model: a transformers model; its weights get no gradients.
        adapters: the pool by name.
    """

    def __init__(self, model: torch.nn.Module, adapters: Mapping[str, LoRAAdapter]) -> None:
        self._model = model.requires_grad_(False)
        self._adapters = adapters
        self._factors: dict[str, LayerFactors] = {}
        self._mixer: TokenMixer | None = None
        self._hooks = ExitStack()

    @property
    def paths(self) -> list[str]:
        """Layers that some adapter touches."""
        return list(dict.fromkeys(path for adapter in self._adapters.values() for path in adapter.modules))

    def features(self, path: str) -> tuple[int, int]:
        """In- and out-features of a layer that some adapter touches."""
        factors = next(adapter.modules[path] for adapter in self._adapters.values() if path in adapter.modules)
        return int(factors.lora_a.shape[1]), int(factors.lora_b.shape[0])

    def mix(self, names: Sequence[str], mixer: TokenMixer) -> None:
        """From now on these adapters are mixed, in this order."""
        self._mixer = mixer
        self._factors = {path: self._stacked(path, names) for path in self.paths}

    def __enter__(self) -> Self:
        for path in self.paths:
            handle = self._model.get_submodule(path).register_forward_hook(self._hook_of(path))
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _stacked(self, path: str, names: Sequence[str]) -> LayerFactors:
        num_in, num_out = self.features(path)
        there = [self._adapters[name].modules.get(path) for name in names]
        rank = max((factors.lora_rank for factors in there if factors is not None), default=1)
        weight = next(self._model.parameters())
        a_LRD = torch.zeros(len(names), rank, num_in, dtype=weight.dtype, device=weight.device)
        b_LOR = torch.zeros(len(names), num_out, rank, dtype=weight.dtype, device=weight.device)
        for place, factors in enumerate(there):
            if factors is not None:
                a_LRD[place, : factors.lora_rank] = factors.lora_a.to(weight)
                b_LOR[place, :, : factors.lora_rank] = factors.lora_b.to(weight) * factors.scaling
        return LayerFactors(a_LRD=a_LRD, b_LOR=b_LOR)

    def _hook_of(self, path: str) -> Any:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self._mixer is None:
                return output
            factors, x_BTD = self._factors[path], inputs[0]
            h_BTLR = torch.einsum("btd,lrd->btlr", x_BTD, factors.a_LRD)
            outputs_BTLO = torch.einsum("btlr,lor->btlo", h_BTLR, factors.b_LOR)
            alphas_BTL = self._mixer.alphas(path, x_BTD, outputs_BTLO)
            return output + torch.einsum("btl,btlo->bto", alphas_BTL, outputs_BTLO)

        return add
