"""Runs a step's passes through an encoder-decoder model.

Shapes: E prompts, L tokens of the longest, R rows of all decoder passes, S of them to sample from, V vocabulary.

A new prompt goes through the encoder, and each decoder layer's cross-attention makes its keys and values of it at once:
these layers act on the encoder's rows, all others of the decoder on its own. After that prompt and answer are in the
request's slot, and all requests that write go through the decoder together, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hilora.errors import InvalidInput
from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.seq2seq_batch import DecoderWork, EncoderWork, Seq2SeqBatch, Seq2SeqBatcher
from services.worker.engine.kv.kv_cache import num_slots_within
from services.worker.engine.kv.seq2seq_kv_cache import Seq2SeqKvCache
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.kernels.fast_linear import speed_up_linear_layers
from services.worker.lora.gating.batch_plan import RocContext, StepRocsBuilder
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.layers.wrapping import listed_modules, wrap_layers
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.models.loader import LoadedModel
from services.worker.models.seq2seq_attention import (
    AnswerCache,
    DecoderPass,
    EncoderPass,
    attach_seq2seq_attention,
    write_prompts,
)
from services.worker.ports import GateSource

SEQ2SEQ_MODEL_TYPES = ("t5", "mt5", "umt5")
"""Architectures whose attention looks at distances alone: FLAN-T5 and ByT5 are `t5`."""


class Seq2SeqRunner:
    """A model with its slots and its ROC pool. Takes the loaded model over: its layers are changed in place.

    Args:
        loaded: the base model.
        config: sizes of cache and pool.
        gate_source: where learned gates come from; None: there are none.

    Raises:
        InvalidInput: `unsupported_architecture`; `invalid_dtype`; `no_decoder_start_token`; `kv_cache_too_small`.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, gate_source: GateSource | None = None) -> None:
        _check_architecture(loaded)
        start_token_id = _start_token_id(loaded)
        self._model = loaded.model
        self._dtype = loaded.dtype
        self._device = loaded.device
        self._rocs = RocContext()
        speed_up_linear_layers(self._model)
        if config.enable_lora:
            modules = wrap_layers(self._model, self._rocs, output_embedding=self._model.get_output_embeddings())
        else:
            modules = listed_modules(self._model)
        self.pool = RocPool(
            modules=modules, capacity_bytes=config.roc_pool_bytes, dtype=loaded.dtype, device=loaded.device
        )
        self.gates = LearnedGates(
            modules=modules,
            source=gate_source,
            capacity_bytes=config.gate_bytes,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self.kv_cache = Seq2SeqKvCache(
            num_layers=loaded.num_layers,
            num_slots=num_slots_within(loaded, config),
            num_heads=loaded.num_key_value_heads,
            max_len=config.max_model_len,
            head_dim=loaded.head_dim,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        self._attention = attach_seq2seq_attention(self._model, max_len=config.max_model_len)
        self._cache = AnswerCache(num_layers=loaded.num_layers, device=loaded.device)
        builder = StepRocsBuilder(self.pool, dtype=loaded.dtype, device=loaded.device, gates=self.gates)
        self._batcher = Seq2SeqBatcher(builder, self.kv_cache, start_token_id=start_token_id, device=loaded.device)

    def build_batch(self, works: Sequence[ScheduledWork]) -> Seq2SeqBatch:
        """The passes for a step's work; each request has its slot, and its ROCs are resident."""
        return self._batcher.build(works)

    @torch.inference_mode()
    def execute(self, batch: Seq2SeqBatch) -> torch.Tensor:
        """All passes of a step: logits `[S, V]`.

        Running the same batch again is harmless: every value goes to the same place.
        """
        try:
            for encoder in batch.encoders:
                self._encode(encoder)
            logits = [self._decode(decoder) for decoder in batch.decoders]
        finally:
            self._attention.current = None
            self._rocs.step = None
        if not batch.logit_rows:
            return torch.empty(0, self._vocab_size, dtype=self._dtype, device=self._device)
        logits_RV = logits[0] if len(logits) == 1 else torch.cat(logits)
        # Rows of logits are large; most steps sample from all of them.
        return logits_RV if len(batch.logit_rows) == len(logits_RV) else logits_RV[list(batch.logit_rows)]

    @property
    def _vocab_size(self) -> int:
        return int(self._model.config.vocab_size)

    def _encode(self, work: EncoderWork) -> None:
        self._attention.current = EncoderPass(work.lengths, dtype=self._dtype, device=self._device)
        self._rocs.step = work.rocs
        states_ELX = self._model.encoder(input_ids=work.token_ids_EL).last_hidden_state
        write_prompts(self._model, self.kv_cache, states_ELX, work.slots, work.lengths)

    def _decode(self, work: DecoderWork) -> torch.Tensor:
        """Logits of each row's last token."""
        num_rows, num_tokens = work.token_ids_Bn.shape
        self._attention.current = DecoderPass(
            self.kv_cache,
            slots=work.slots,
            positions=work.positions,
            num_tokens=num_tokens,
            prompt_lengths=work.prompt_lengths,
            dtype=self._dtype,
            device=self._device,
        )
        self._rocs.step = work.rocs
        # Cross-attention happens where there are encoder states; what it made of them is in the slots.
        states = torch.empty(num_rows, 1, self._model.config.d_model, dtype=self._dtype, device=self._device)
        output = self._model(
            decoder_input_ids=work.token_ids_Bn,
            encoder_outputs=(states,),
            past_key_values=self._cache.past_key_values,
            use_cache=False,
        )
        return output.logits[:, -1]


def _check_architecture(loaded: LoadedModel) -> None:
    model_type = loaded.model.config.model_type
    if model_type not in SEQ2SEQ_MODEL_TYPES:
        raise InvalidInput(
            f"{loaded.name} is an encoder-decoder model of type {model_type!r}, which the worker cannot serve.",
            code="unsupported_architecture",
            remedy=f"Use a decoder-only model, or one of type {', '.join(SEQ2SEQ_MODEL_TYPES)}.",
            place="base_model",
        )
    if loaded.dtype is torch.float16:
        raise InvalidInput(
            f"{loaded.name} cannot be served in float16: activations of the T5 family exceed what it holds.",
            code="invalid_dtype",
            remedy="Use bfloat16 or float32.",
            place="dtype",
        )


def _start_token_id(loaded: LoadedModel) -> int:
    for config in (loaded.model.generation_config, loaded.model.config):
        found: Any = getattr(config, "decoder_start_token_id", None)
        if isinstance(found, int):
            return found
    raise InvalidInput(
        f"{loaded.name} does not say which token its decoder starts with.",
        code="no_decoder_start_token",
        remedy="Set decoder_start_token_id in its generation_config.json.",
        place="base_model",
    )
