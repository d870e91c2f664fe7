"""Keys and values of running requests in pages.

Shapes: P pages, Z positions of a page, K key-value heads, D head dimension.

A sequence holds a block table of pages, which grows as the sequence does. With the prefix cache on, full pages are
shared: they are counted by the sequences that hold them, and those that nobody holds are kept until room is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.kv.prefix_cache import PagePrefixes
from services.worker.models.paged_attention import NULL_PAGE, PagedAttentionStep, PagedRows
from services.worker.models.static_decode import StaticDecodeStep
from services.worker.models.varlen_attention import VarlenAttention

NUM_EXTRA_PAGES = 2
"""Pages that hold no sequence: the null page, and a scratch page for the padding rows of captured graphs."""
_RUNNING_PER_SPARE_PAGE = 4
"""Admission leaves one page for so many running sequences, so that it does not cause a preemption at once."""


class PagedKvCache:
    """`num_pages` pages of `page_size` positions in every layer; a `KvCache`.

    Args:
        num_layers: decoder layers of the model.
        num_pages: pages that sequences may hold; at least one sequence of `max_len` fits.
        page_size: positions of a page.
        num_heads: key-value heads of a layer.
        max_len: positions of the longest sequence.
        head_dim: size of a head.
        dtype: of keys and values.
        device: where they live.
        enable_prefix_cache: whether full pages are shared and kept.
        varlen: the attention kernel; None gathers.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        enable_prefix_cache: bool = False,
        varlen: VarlenAttention | None = None,
    ) -> None:
        if num_pages * page_size < max_len:
            raise ValueError(f"{num_pages} pages of {page_size} do not hold {max_len} positions")
        self._scratch_page = num_pages + 1
        shape = (num_layers, num_pages + NUM_EXTRA_PAGES, page_size, num_heads, head_dim)
        # Zeros, not garbage: a masked position still multiplies its value by 0, and 0 * NaN is NaN.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._page_size = page_size
        self._num_pages = num_pages
        self._max_len = max_len
        self._varlen = varlen
        self._is_caching = enable_prefix_cache
        # A stack of pages that are clear.
        self._empty = [page for page in range(num_pages, -1, -1) if page != NULL_PAGE]
        # Pages on their way there: they stay here if clearing them fails, as it may where memory is out.
        self._unclear: list[int] = []
        self._num_holders: dict[int, int] = {}
        self._table_of: dict[str, list[int]] = {}
        self._key_of: dict[str, str | None] = {}
        self._prefixes = PagePrefixes(page_size)

    @property
    def num_layers(self) -> int:
        """Layers that have room in it."""
        return int(self._keys.shape[0])

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel attends to the pages, as captured graphs need."""
        return self._varlen is not None

    @property
    def usage(self) -> float:
        """Share of the pages that requests hold, 0 to 1."""
        return len(self._num_holders) / self._num_pages

    @property
    def owners(self) -> frozenset[str]:
        """Request ids that hold pages."""
        return frozenset(self._table_of)

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[P, Z, K, D]`, to be read and written in place."""
        return self._keys[layer_idx]

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[P, Z, K, D]`, to be read and written in place."""
        return self._values[layer_idx]

    def can_admit(self, num_tokens: int) -> bool:
        """Whether all pages of a request can be had, and a few are left for those that run."""
        num_spare = -(-len(self._table_of) // _RUNNING_PER_SPARE_PAGE)
        return num_tokens <= self._max_len and self._pages_for(num_tokens) + num_spare <= self._num_available

    def allocate(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None) -> KvHandle:
        """Pages for all of the tokens, those of a known prefix shared; see `KvCache`.

        Raises:
            ValueError: there are not enough pages, or the owner has some.
        """
        if owner in self._table_of:
            raise ValueError(f"{owner} holds pages already")
        shared: list[int] = []
        if self._is_caching and prefix_key is not None:
            shared = self._prefixes.find(prefix_key, token_ids)
        for page in shared:
            self._hold(page)
        self._table_of[owner] = shared
        self._key_of[owner] = prefix_key
        handle = KvHandle(owner=owner, num_cached_tokens=len(shared) * self._page_size)
        try:
            if not self.reserve(handle, len(token_ids)):
                raise ValueError("not enough free pages, or too many tokens for one request")
        except Exception:
            self.free(handle, token_ids=(), num_written=0, is_reusable=False)
            raise
        return handle

    def reserve(self, handle: KvHandle, num_tokens: int) -> bool:
        """Give a request the pages it lacks; all of them, or none."""
        table = self._table(handle)
        num_missing = self._pages_for(num_tokens) - len(table)
        if num_tokens > self._max_len or num_missing > self._num_available:
            return False
        while len(self._empty) + len(self._unclear) < num_missing:
            self._unclear.append(self._prefixes.evict())
        if len(self._empty) < num_missing:
            self._clear_pages()
        for _ in range(num_missing):
            page = self._empty.pop()
            self._hold(page)
            table.append(page)
        return True

    def free(self, handle: KvHandle, *, token_ids: Sequence[int], num_written: int, is_reusable: bool) -> None:
        """Give a request's pages back: the full ones are kept if they may be reused, the others cleared.

        Cleared because the next owner's masked positions must be finite, and because one request's values have no
        business in another one's memory.
        """
        table = self._table(handle)
        del self._table_of[handle.owner]
        prefix_key = self._key_of.pop(handle.owner)
        if is_reusable and self._is_caching and prefix_key is not None:
            self._prefixes.register(prefix_key, token_ids[:num_written], table)
        # The last page first, so that of one prefix the end is evicted before the beginning.
        for page in reversed(table):
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                del self._num_holders[page]
                if page in self._prefixes:
                    self._prefixes.rest(page)
                else:
                    self._unclear.append(page)
        self._clear_pages()

    def attention_step(
        self,
        decodes: Sequence[tuple[KvHandle, int]],
        chunks: Sequence[tuple[KvHandle, int, int, int]],
        device: torch.device,
    ) -> PagedAttentionStep:
        """What the model's attention needs of one step; see `KvCache`."""
        return PagedAttentionStep(
            self,
            decodes=[
                PagedRows(row=row, num_tokens=1, start=position, pages=self._table(handle))
                for row, (handle, position) in enumerate(decodes)
            ],
            chunks=[
                PagedRows(row=row, num_tokens=num_tokens, start=start, pages=self._table(handle))
                for handle, row, start, num_tokens in chunks
            ],
            page_size=self._page_size,
            device=device,
            varlen=self._varlen,
        )

    def static_decode_step(self, num_rows: int, device: torch.device) -> StaticDecodeStep:
        """The attention of decode-only steps of up to `num_rows` rows, for a captured graph.

        Raises:
            ValueError: the cache has no kernel that attends to pages.
        """
        if self._varlen is None:
            raise ValueError("graphs need a kernel that attends to pages")
        return StaticDecodeStep(
            self,
            num_rows=num_rows,
            max_positions=self._max_len,
            page_size=self._page_size,
            scratch_page=self._scratch_page,
            varlen=self._varlen,
            device=device,
        )

    def check_integrity(self) -> None:
        """AssertionError unless every page is held, kept or empty, counted right, and empty ones are clear."""
        self._prefixes.check_integrity()
        counts: dict[int, int] = {}
        for owner, table in self._table_of.items():
            assert len(set(table)) == len(table), f"{owner} holds a page twice"
            for page in table:
                counts[page] = counts.get(page, 0) + 1
        assert counts == self._num_holders, "holders of pages are counted wrong"
        assert all(count == 1 for page, count in counts.items() if page not in self._prefixes), "a page is shared"
        held, empty, idle = set(counts), {*self._empty, *self._unclear}, self._prefixes.idle
        assert len(empty) == len(self._empty) + len(self._unclear), "a page is empty twice"
        assert NULL_PAGE not in held | empty | idle, "the null page is in use"
        assert len(held) + len(empty) + len(idle) == self._num_pages, "a page is lost, or in two states"
        assert held | empty | idle | {NULL_PAGE} == set(range(self._num_pages + 1)), "a page is lost"
        assert self._key_of.keys() == self._table_of.keys(), "pages and keys of requests disagree"
        clear = torch.tensor([NULL_PAGE, *self._empty], device=self._keys.device)
        assert not self._keys[:, clear].any(), "an empty page still holds keys"
        assert not self._values[:, clear].any(), "an empty page still holds values"

    @property
    def _num_available(self) -> int:
        return len(self._empty) + len(self._unclear) + self._prefixes.num_idle

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)

    def _table(self, handle: KvHandle) -> list[int]:
        table = self._table_of.get(handle.owner)
        if table is None:
            raise ValueError(f"{handle.owner} holds no pages")
        return table

    def _hold(self, page: int) -> None:
        self._num_holders[page] = self._num_holders.get(page, 0) + 1
        self._prefixes.hold(page)

    def _clear_pages(self) -> None:
        if not self._unclear:
            return
        which = torch.tensor(self._unclear, device=self._keys.device)
        self._keys.index_fill_(1, which, 0)
        self._values.index_fill_(1, which, 0)
        self._empty.extend(self._unclear)
        self._unclear.clear()
