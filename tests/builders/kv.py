"""KV caches of every layout, and attention without a cache to compare them with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from services.worker.engine.kv.kv_cache import KvCache, KvHandle
from services.worker.engine.kv.paged_kv_cache import PagedKvCache
from services.worker.engine.kv.slot_kv_cache import SlotKvCache
from services.worker.models.attention_product import AttentionRule
from services.worker.models.varlen_attention import adapt_varlen_attention

LAYOUTS = ("slots", "pages", "pages_with_kernel", "slots_with_kernel")
NUM_LAYERS, NUM_KEY_HEADS = 2, 2
FULL = AttentionRule(scaling=0.5)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def make_cache(
    layout: str, *, num_seqs: int = 3, max_len: int = 24, dtype: torch.dtype = torch.float64, **options: Any
) -> KvCache:
    """A small cache; pages are of 4 positions, and as many as the slots would have.

    The CPU kernel takes over where numbers are float32 and heads of a width it likes; elsewhere they are not.
    """
    has_cpu_kernel = layout == "slots_with_kernel"
    common: dict[str, Any] = {
        "num_layers": NUM_LAYERS,
        "num_heads": NUM_KEY_HEADS,
        "max_len": max_len,
        "head_dim": 16 if has_cpu_kernel else 4,
        "dtype": torch.float32 if has_cpu_kernel else dtype,
        "device": torch.device("cpu"),
        **options,
    }
    if layout in {"slots", "slots_with_kernel"}:
        return SlotKvCache(num_slots=num_seqs, **common)
    common.setdefault("num_pages", num_seqs * -(-max_len // 4))
    varlen = adapt_varlen_attention(varlen_reference) if layout == "pages_with_kernel" else None
    return PagedKvCache(page_size=4, varlen=varlen, **common)


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """What torch's `varlen_attn` does with pages, sequence by sequence, by its documentation."""
    assert enable_gqa
    assert {tensor.dtype for tensor in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert (int(cu_seq_q.diff().max()), int(seqused_k.max())) == (max_q, max_k)
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    left, right = window_size
    assert right == 0
    out = torch.empty_like(query)
    for idx, (start, stop) in enumerate(zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True)):
        num_used = int(seqused_k[idx])
        keys = key[block_table[idx].long()].flatten(0, 1)[:num_used]
        values = value[block_table[idx].long()].flatten(0, 1)[:num_used]
        rule = AttentionRule(scaling=scale, window=None if left < 0 else left + 1)
        out[start:stop] = dense_attention(query[start:stop], keys, values, rule)
    return out


def dense_attention(
    query_nHD: torch.Tensor, keys_LKD: torch.Tensor, values_LKD: torch.Tensor, rule: AttentionRule
) -> torch.Tensor:
    """The last n positions of one sequence, attending by the book: `[n, H, D]`."""
    num_new, num_heads, _ = query_nHD.shape
    num_positions, num_key_heads, _ = keys_LKD.shape
    out = torch.empty_like(query_nHD)
    for idx in range(num_new):
        position = num_positions - num_new + idx
        first = 0 if rule.window is None else max(0, position - rule.window + 1)
        for head in range(num_heads):
            key_head = head * num_key_heads // num_heads
            scores = keys_LKD[first : position + 1, key_head] @ query_nHD[idx, head] * rule.scaling
            if rule.softcap is not None:
                scores = rule.softcap * torch.tanh(scores / rule.softcap)
            out[idx, head] = scores.softmax(-1) @ values_LKD[first : position + 1, key_head]
    return out


class Sequences:
    """Sequences in a cache, whose every step is compared with attention by the book.

    Keys and values are drawn at random, but the same for the same prefix key and leading tokens, as a model's are.
    """

    def __init__(self, cache: KvCache, *, num_heads: int = 4, seed: int = 0) -> None:
        self.cache = cache
        self.handles: dict[str, KvHandle] = {}
        self.tokens: dict[str, list[int]] = {}
        self.num_written: dict[str, int] = {}
        self._prefix_keys: dict[str, str | None] = {}
        self._num_heads = num_heads
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        assert isinstance(cache, (SlotKvCache, PagedKvCache))
        keys = cache.keys(0)
        self._head_dim, self._dtype = keys.shape[-1], keys.dtype

    def begin(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None = None) -> KvHandle:
        """Allocate memory for a sequence."""
        self.handles[owner] = handle = self.cache.allocate(owner, token_ids, prefix_key=prefix_key)
        self.tokens[owner] = list(token_ids)
        self.num_written[owner] = handle.num_cached_tokens
        self._prefix_keys[owner] = prefix_key
        return handle

    def end(self, owner: str, *, is_reusable: bool = False) -> None:
        """Free a sequence's memory."""
        self.cache.free(
            self.handles.pop(owner),
            token_ids=self.tokens.pop(owner),
            num_written=self.num_written.pop(owner),
            is_reusable=is_reusable,
        )

    def step(self, decodes: Sequence[str], chunks: Sequence[tuple[str, int]], rule: AttentionRule = FULL) -> None:
        """One step over all layers.

        Args:
            decodes: owners that advance by one token, in row order.
            chunks: owners that advance by so many.
            rule: of every layer.
        """
        work = [*((owner, 1) for owner in decodes), *chunks]
        rows = [0]
        for owner, num_tokens in work:
            stop = self.num_written[owner] + num_tokens
            self.tokens[owner].extend([0] * (stop - len(self.tokens[owner])))
            assert self.cache.reserve(self.handles[owner], stop)
            rows.append(rows[-1] + num_tokens)
        step = self.cache.attention_step(
            [(self.handles[owner], self.num_written[owner]) for owner in decodes],
            [
                (self.handles[owner], row, self.num_written[owner], num_tokens)
                for (owner, num_tokens), row in zip(chunks, rows[len(decodes) :], strict=False)
            ],
            torch.device("cpu"),
        )
        contents = [self._content(owner, self.num_written[owner] + num_tokens) for owner, num_tokens in work]
        query = torch.randn(
            NUM_LAYERS, self._num_heads, rows[-1], self._head_dim, generator=self._generator, dtype=self._dtype
        )
        new = torch.cat([content[-count:] for content, (_, count) in zip(contents, work, strict=True)])
        key, value = new.permute(1, 2, 3, 0, 4)
        found = [step.attend(idx, query[idx], key[idx], value[idx], rule) for idx in range(NUM_LAYERS)]
        for (owner, num_tokens), row, content in zip(work, rows, contents, strict=False):
            own = slice(row, row + num_tokens)
            self.num_written[owner] += num_tokens
            for idx in range(NUM_LAYERS):
                keys, values = content[:, 0, idx], content[:, 1, idx]
                tolerance = _TOLERANCE[self._dtype]
                expected = dense_attention(query[idx, :, own].transpose(0, 1), keys, values, rule)
                torch.testing.assert_close(found[idx][own], expected, rtol=tolerance, atol=tolerance)

    def _content(self, owner: str, num_tokens: int) -> torch.Tensor:
        """`[num_tokens, 2, layers, K, D]`: keys and values of a sequence's leading tokens."""
        digest = hashlib.sha256(repr((self._seed, self._prefix_keys[owner])).encode())
        content = torch.empty(num_tokens, 2, NUM_LAYERS, NUM_KEY_HEADS, self._head_dim, dtype=self._dtype)
        for idx, token in enumerate(self.tokens[owner][:num_tokens]):
            digest.update(f" {token}".encode())
            generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "big"))
            content[idx].normal_(generator=generator)
        return content
