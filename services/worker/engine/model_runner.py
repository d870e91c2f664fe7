"""Runs a step's batch through the model.

Shapes: T packed tokens, S rows to sample from, V vocabulary.
"""

from __future__ import annotations

import torch

from services.worker.engine.batch import StepBatch, build_batch
from services.worker.engine.config import EngineConfig
from services.worker.engine.kv_cache import SlotKvCache
from services.worker.engine.scheduler import ScheduledWork
from services.worker.lora.batch_plan import RocContext, StepRocsBuilder
from services.worker.lora.gated_linear import wrap_linears
from services.worker.lora.roc_pool import RocPool
from services.worker.models.attention import SlotAttention
from services.worker.models.loader import LoadedModel


class ModelRunner:
    """A model with its KV cache and its ROC pool. Takes the loaded model over: its layers are changed in place.

    Args:
        loaded: the base model.
        config: sizes of cache and pool.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._rocs = RocContext()
        modules = wrap_linears(self._model, self._rocs, output_embedding=self._model.get_output_embeddings())
        self.pool = RocPool(
            modules=modules, capacity_bytes=config.roc_pool_bytes, dtype=loaded.dtype, device=loaded.device
        )
        self.kv_cache = SlotKvCache(
            num_layers=loaded.num_layers,
            num_slots=config.max_num_seqs,
            num_heads=loaded.num_key_value_heads,
            max_len=config.max_model_len,
            head_dim=loaded.head_dim,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self._attention = SlotAttention(self.kv_cache)
        self._attention.attach(self._model)
        self._builder = StepRocsBuilder(self.pool, dtype=loaded.dtype, device=loaded.device)

    def build_batch(self, works: list[ScheduledWork]) -> StepBatch:
        """The tensors for a step's work; each request holds a slot, and its ROCs are resident."""
        return build_batch(works, self._builder, device=self._device)

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> torch.Tensor:
        """One forward pass: writes the step's keys and values, returns logits `[S, V]`.

        Running the same batch again is harmless: every value goes to the same place.
        """
        self._attention.step = batch.attention
        self._rocs.step = batch.rocs
        try:
            output = self._model(
                input_ids=batch.token_ids_T[None],
                position_ids=batch.positions_T[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows_S,
            )
        finally:
            self._attention.step = None
            self._rocs.step = None
        return output.logits[0]
