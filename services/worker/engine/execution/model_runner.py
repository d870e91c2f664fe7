"""Runs a step's batch through the model.

Shapes: T packed tokens, S rows to sample from, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.batch import StepBatch, build_batch
from services.worker.engine.execution.gating_pass import GatingPass
from services.worker.engine.execution.input_pass import InputPass
from services.worker.engine.kv.kv_cache import build_kv_cache
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.engine.kv.slot_kv_cache import SlotKvCache
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.kernels.fast_linear import speed_up_linear_layers
from services.worker.lora.gating.batch_plan import RocContext, StepRocsBuilder, StepWork
from services.worker.lora.gating.gating_counts import GatingCounter
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.layers.wrapping import capturable_modules, listed_modules, wrap_layers
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.models.attention import AttentionStep, attach_attention
from services.worker.models.loader import LoadedModel
from services.worker.models.rotary import fix_rotary_frequencies
from services.worker.ports import GateSource

if TYPE_CHECKING:
    # Triton is imported where a GPU is.
    from services.worker.engine.execution.decode_graphs import DecodeGraphs


class ModelRunner:
    """A model with its KV cache and its ROC pool. Takes the loaded model over: its layers are changed in place.

    Args:
        loaded: the base model.
        config: sizes of cache and pool.
        gate_source: where learned gates come from; None: there are none.

    Raises:
        ValueError: `max_model_len` exceeds the positions that the model has embeddings for.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, gate_source: GateSource | None = None) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._device = loaded.device
        self._rocs = RocContext()
        _check_positions(loaded, config)
        fix_rotary_frequencies(self._model, max_model_len=config.max_model_len)
        speed_up_linear_layers(self._model)
        if config.enable_lora:
            self.modules = wrap_layers(
                self._model,
                self._rocs,
                output_embedding=self._model.get_output_embeddings(),
                exchange=loaded.group,
            )
        else:
            self.modules = listed_modules(self._model, exchange=loaded.group)
        self.pool = RocPool(
            modules=self.modules, capacity_bytes=config.roc_pool_bytes, dtype=loaded.dtype, device=loaded.device
        )
        self.gates = LearnedGates(
            modules=self.modules,
            source=gate_source,
            capacity_bytes=config.gate_bytes,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self.kv_cache = build_kv_cache(loaded, config)
        self._attention = attach_attention(self._model, self.kv_cache)
        self._builder = StepRocsBuilder(self.pool, dtype=loaded.dtype, device=loaded.device, gates=self.gates)
        self._graphs = self._made_graphs(config)

    def build_batch(self, works: Sequence[ScheduledWork]) -> StepBatch:
        """The tensors for a step's work; each request has its place in the KV cache, and its ROCs are resident."""
        return build_batch(works, self._builder, self.kv_cache, device=self._device)

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> torch.Tensor:
        """One forward pass: writes the step's keys and values, returns logits `[S, V]`.

        Running the same batch again is harmless: every value goes to the same place.
        """
        if self._graphs is not None and (logits_SV := self._graphs.run(batch)) is not None:
            return logits_SV
        return self._forward(
            token_ids_T=batch.token_ids_T,
            positions_T=batch.positions_T,
            logit_rows_S=batch.logit_rows_S,
            attention=batch.attention,
            rocs=batch.rocs,
        )

    def gating_pass(
        self, token_ids: Sequence[int], *, num_prompt_tokens: int, num_read_tokens: int, plan: RoutingPlan
    ) -> GatingPass:
        """Another reading of a finished request's tokens, see `GatingPass`; its keys and values are allocated anew."""
        return GatingPass(
            token_ids,
            num_prompt_tokens=num_prompt_tokens,
            num_read_tokens=num_read_tokens,
            plan=plan,
            module_paths=[shape.module_path for shape in self.modules],
            make_counter=lambda phase: GatingCounter(
                phase, self.pool, self.gates, dtype=self._loaded.dtype, device=self._device
            ),
            # One of its own: what the steps' builder keeps of their layouts stays.
            builder=StepRocsBuilder(self.pool, dtype=self._loaded.dtype, device=self._device, gates=self.gates),
            kv_cache=self._own_cache(len(token_ids)),
            forward=self._forward,
            device=self._device,
        )

    @property
    def module_paths(self) -> tuple[str, ...]:
        """The model's layers that adapters may touch, in its order."""
        return tuple(shape.module_path for shape in self.modules)

    def input_pass(self, token_ids: Sequence[int], *, module_path: str) -> InputPass:
        """A reading of a prompt with the base alone, see `InputPass`."""
        return InputPass(
            token_ids,
            module_idx=self.module_paths.index(module_path),
            kv_cache=self._own_cache(len(token_ids)),
            forward=self._forward,
            device=self._device,
        )

    def _own_cache(self, max_len: int) -> SlotKvCache:
        """Keys and values of one reading beside the requests'."""
        return SlotKvCache(
            num_layers=self._loaded.num_layers,
            num_slots=1,
            num_heads=self._loaded.num_key_value_heads,
            max_len=max_len,
            head_dim=self._loaded.head_dim,
            dtype=self._loaded.dtype,
            device=self._device,
        )

    def _forward(
        self,
        *,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        logit_rows_S: torch.Tensor,
        attention: AttentionStep,
        rocs: StepWork | None,
    ) -> torch.Tensor:
        self._attention.step = attention
        self._rocs.step = rocs
        try:
            output = self._model(
                input_ids=token_ids_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                logits_to_keep=logit_rows_S,
            )
        finally:
            self._attention.step = None
            self._rocs.step = None
        return output.logits[0]

    def _made_graphs(self, config: EngineConfig) -> DecodeGraphs | None:
        """Captured decode steps, where the device can capture and the kernel reads pages."""
        capturable = capturable_modules(self._model)
        has_kernel = isinstance(self.kv_cache, PagedKvCache) and self.kv_cache.has_kernel
        if not config.enable_cuda_graphs or self._device.type != "cuda" or not has_kernel or capturable is None:
            return None
        from services.worker.engine.execution.decode_graphs import CudaGraphRecorder, DecodeGraphs

        assert isinstance(self.kv_cache, PagedKvCache)
        return DecodeGraphs(
            model=self._model,
            kv_cache=self.kv_cache,
            capturable=capturable,
            roc_context=self._rocs,
            attention_context=self._attention,
            max_num_seqs=config.max_num_seqs,
            recorder=CudaGraphRecorder(),
            device=self._device,
        )


def _check_positions(loaded: LoadedModel, config: EngineConfig) -> None:
    limit = loaded.num_learned_positions
    if limit is not None and config.max_model_len > limit:
        raise ValueError(f"max_model_len is {config.max_model_len}, but {loaded.name} has {limit} learned positions")
