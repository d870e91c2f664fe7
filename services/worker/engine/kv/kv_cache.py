"""The memory of keys and values behind one interface, in one of two layouts.

*Slots* give each request room for a whole context at once. Nothing is gathered before attention, which makes them the
faster layout on a CPU. *Pages* give a sequence what it needs as it grows: more requests fit, admission may be too
hopeful, and then somebody has to be preempted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hilora.errors import InvalidInput
from services.worker.engine.config import EngineConfig
from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.kv.paged_kv_cache import NUM_EXTRA_PAGES, PagedKvCache
from services.worker.engine.kv.slot_kv_cache import SlotKvCache
from services.worker.models.attention import AttentionStep
from services.worker.models.loader import LoadedModel
from services.worker.models.varlen_attention import VARLEN_PAGE_SIZE, VarlenAttention, find_varlen_attention

__all__ = ["KvCache", "KvHandle", "SequenceMemory", "build_kv_cache", "num_slots_within"]

_GATHERED_PAGE_SIZE = 16
"""Positions of a page where no kernel asks for more: small, since on average half a page of a sequence is empty."""


class SequenceMemory(Protocol):
    """Keys and values of running requests, and of finished ones whose prefix may be asked for again.

    For the engine's thread alone.
    """

    @property
    def num_layers(self) -> int:
        """Layers that have room in it."""
        ...

    @property
    def usage(self) -> float:
        """Share of the memory that running requests hold, 0 to 1."""
        ...

    @property
    def owners(self) -> frozenset[str]:
        """Request ids that hold memory."""
        ...

    def can_admit(self, num_tokens: int) -> bool:
        """Whether `allocate` would succeed for a request of so many tokens. True for any request that fits
        `max_model_len` while nobody holds memory."""
        ...

    def allocate(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None) -> KvHandle:
        """Room for all of a request's known tokens.

        Args:
            owner: the request's id; it holds no memory yet.
            token_ids: the prompt, and what was generated before a preemption. At least one.
            prefix_key: what besides the tokens decides their keys and values, see `prefix_key_of`. Memory is shared
                between equal keys only; None shares nothing.

        Raises:
            ValueError: there is no room (ask `can_admit` first), or the owner holds memory already.
        """
        ...

    def reserve(self, handle: KvHandle, num_tokens: int) -> bool:
        """Make room for the positions below `num_tokens`, if it is not there yet. False if memory is out; what the
        request held before it still holds."""
        ...

    def free(self, handle: KvHandle, *, token_ids: Sequence[int], num_written: int, is_reusable: bool) -> None:
        """Give a request's memory back. What nobody may read again is cleared.

        Args:
            handle: of the request.
            token_ids: the request's tokens, as far as they are known.
            num_written: leading tokens whose keys and values were computed without a fault.
            is_reusable: whether they may serve a later request: not after a failure or an abort.
        """
        ...

    def check_integrity(self) -> None:
        """AssertionError unless every piece of memory has exactly one state, and free memory is clear."""
        ...


class KvCache(SequenceMemory, Protocol):
    """The memory of a model whose attention the step itself does."""

    def attention_step(
        self,
        decodes: Sequence[tuple[KvHandle, int]],
        chunks: Sequence[tuple[KvHandle, int, int, int]],
        device: torch.device,
    ) -> AttentionStep:
        """What the model's attention needs of one step. Every position must have been reserved.

        Args:
            decodes: handle and position of each decode token; the tokens are the first rows, in this order.
            chunks: handle, first row, position of the first token and number of tokens of each prefill chunk.
            device: of the model.
        """
        ...


def build_kv_cache(loaded: LoadedModel, config: EngineConfig) -> KvCache:
    """The cache for a model within an engine's limits.

    Raises:
        InvalidInput: `kv_cache_too_small`: `kv_cache_bytes` does not hold one request of `max_model_len` tokens.
    """
    varlen = find_varlen_attention(dtype=loaded.dtype, head_dim=loaded.head_dim, device=loaded.device)
    if getattr(loaded.text_config, "attn_logit_softcapping", None) is not None:
        # The kernel does not cap scores.
        varlen = None
    is_paged = config.kv_layout == "pages" or (config.kv_layout == "auto" and varlen is not None)
    return _build_pages(loaded, config, varlen) if is_paged else _build_slots(loaded, config)


def num_slots_within(loaded: LoadedModel, config: EngineConfig) -> int:
    """How many slots of `max_model_len` positions an engine may have.

    Raises:
        InvalidInput: `kv_cache_too_small`: not one.
    """
    if config.kv_cache_bytes is None:
        return config.max_num_seqs
    slot_bytes = config.max_model_len * _position_bytes(loaded)
    num_slots = min(config.max_num_seqs, config.kv_cache_bytes // slot_bytes)
    if num_slots < 1:
        raise _too_small(config, slot_bytes)
    return num_slots


def _build_slots(loaded: LoadedModel, config: EngineConfig) -> SlotKvCache:
    return SlotKvCache(
        num_layers=loaded.num_layers,
        num_slots=num_slots_within(loaded, config),
        num_heads=loaded.num_key_value_heads,
        max_len=config.max_model_len,
        head_dim=loaded.head_dim,
        dtype=loaded.dtype,
        device=loaded.device,
        enable_prefix_cache=config.enable_prefix_cache,
    )


def _build_pages(loaded: LoadedModel, config: EngineConfig, varlen: VarlenAttention | None) -> PagedKvCache:
    page_size = _GATHERED_PAGE_SIZE if varlen is None else VARLEN_PAGE_SIZE
    page_bytes = page_size * _position_bytes(loaded)
    pages_of_longest = -(-config.max_model_len // page_size)
    num_pages = pages_of_longest * config.max_num_seqs
    if config.kv_cache_bytes is not None:
        num_pages = min(num_pages, config.kv_cache_bytes // page_bytes - NUM_EXTRA_PAGES)
        if num_pages < pages_of_longest:
            raise _too_small(config, (pages_of_longest + NUM_EXTRA_PAGES) * page_bytes)
    return PagedKvCache(
        num_layers=loaded.num_layers,
        num_pages=num_pages,
        page_size=page_size,
        num_heads=loaded.num_key_value_heads,
        max_len=config.max_model_len,
        head_dim=loaded.head_dim,
        dtype=loaded.dtype,
        device=loaded.device,
        enable_prefix_cache=config.enable_prefix_cache,
        varlen=varlen,
    )


def _position_bytes(loaded: LoadedModel) -> int:
    """Keys and values of one position in all layers."""
    return 2 * loaded.num_layers * loaded.num_key_value_heads * loaded.head_dim * loaded.dtype.itemsize


def _too_small(config: EngineConfig, needed_bytes: int) -> InvalidInput:
    return InvalidInput(
        f"A KV cache of {config.kv_cache_bytes} bytes does not hold one request of {config.max_model_len} tokens, "
        f"which takes {needed_bytes}.",
        code="kv_cache_too_small",
        remedy="Raise kv_cache_bytes, or lower max_model_len.",
        place="kv_cache_bytes",
    )
