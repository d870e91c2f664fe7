"""Puts gated layers in the places of a base model's own."""

from __future__ import annotations

from typing import cast

from torch import nn

from hilora.target_layer import LayerKind, TargetLayer, target_layers
from services.worker.lora.gating.batch_plan import RocContext
from services.worker.lora.layers.gated_embedding import GatedEmbedding
from services.worker.lora.layers.gated_experts import GatedExpertRouter, GatedExperts
from services.worker.lora.layers.gated_linear import GatedLinear
from services.worker.lora.layers.sharded_linear import ColumnExchange, ShardedGatedLinear
from services.worker.lora.pool.roc_arena import ModuleShape


def wrap_layers(
    model: nn.Module,
    context: RocContext,
    *,
    output_embedding: nn.Module | None,
    exchange: ColumnExchange | None = None,
) -> list[ModuleShape]:
    """Replace every layer of a model that ROCs can be added to by a gated one.

    Weights stay where they are: an output embedding that shares the input embedding's weight still does.

    Args:
        model: changed in place.
        context: shared by all of the layers.
        output_embedding: the layer that makes the logits.
        exchange: the processes that the model is sharded over, if it is. Its experts cannot be targeted then.

    Returns:
        The modules that ROCs may target, in the order of their module indices.
    """
    shapes: list[ModuleShape] = []
    for layer in _targets(model, exchange):
        is_output_embedding = layer.module is output_embedding
        gated = _gated(layer, len(shapes), context, is_output_embedding=is_output_embedding, exchange=exchange)
        parent_path, _, name = layer.path.rpartition(".")
        setattr(model.get_submodule(parent_path), name, gated)
        shapes.extend(_shapes_of(layer))
    return shapes


def listed_modules(model: nn.Module, *, exchange: ColumnExchange | None = None) -> list[ModuleShape]:
    """What `wrap_layers` would return, with the model left as it is."""
    return [shape for layer in _targets(model, exchange) for shape in _shapes_of(layer)]


def capturable_modules(model: nn.Module) -> frozenset[int] | None:
    """Module indices whose work a captured graph can repeat: linear layers that see every token of a step.

    None if the model has layers that choose tokens by their values: such a model is not captured at all.
    """
    gated = list(model.modules())
    if any(isinstance(module, GatedExperts | GatedExpertRouter) for module in gated):
        return None
    return frozenset(
        module.module_idx for module in gated if isinstance(module, GatedLinear) and not module.is_output_embedding
    )


def _shapes_of(layer: TargetLayer) -> list[ModuleShape]:
    return [
        ModuleShape(module_path=path, in_features=num_in, out_features=num_out)
        for path, (num_out, num_in) in layer.features.items()
    ]


def _targets(model: nn.Module, exchange: ColumnExchange | None) -> list[TargetLayer]:
    layers = target_layers(model)
    if exchange is None:
        return layers
    return [layer for layer in layers if layer.kind in {LayerKind.LINEAR, LayerKind.EMBEDDING}]


def _gated(
    layer: TargetLayer,
    module_idx: int,
    context: RocContext,
    *,
    is_output_embedding: bool,
    exchange: ColumnExchange | None,
) -> nn.Module:
    match layer.kind:
        case LayerKind.LINEAR if exchange is not None:
            num_out, num_in = layer.features[layer.path]
            return ShardedGatedLinear(
                layer.module,
                module_idx=module_idx,
                context=context,
                is_output_embedding=is_output_embedding,
                in_features=num_in,
                out_features=num_out,
                exchange=exchange,
            )
        case LayerKind.LINEAR:
            return GatedLinear(
                layer.module, module_idx=module_idx, context=context, is_output_embedding=is_output_embedding
            )
        case LayerKind.EMBEDDING:
            return GatedEmbedding(cast("nn.Embedding", layer.module), module_idx=module_idx, context=context)
        case LayerKind.EXPERTS:
            return GatedExperts(layer.module, first_module_idx=module_idx, context=context)
        case LayerKind.EXPERT_ROUTER:
            return GatedExpertRouter(layer.module, module_idx=module_idx, context=context)
