"""Which keys and values in the cache belong to which prefix.

Keys and values of a token depend on the base's weights, on the ROCs that act and on all tokens before it.
`prefix_key_of` covers the first two; the tokens are compared (slots) or hashed in a chain (pages). An adapter id
carries the hash of its content, so an entry of a retired adapter can only match a request for that very content, for
which it is right; without one it grows old and is evicted.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hilora.routing_plan import RoutingPlan


def prefix_key_of(base_revision: str, plan: RoutingPlan) -> str:
    """What besides its tokens decides a prefix's keys and values. All plans without ROCs are one: the base alone.

    Args:
        base_revision: of the model.
        plan: of one phase. A plan of two shares what it reads, with the plans that have its reading phase throughout.
    """
    assert not plan.has_phases, "what a prefix holds depends on where the second phase began"
    rocs = "base" if plan.is_base_only else plan.digest
    return hashlib.sha256(f"{base_revision}\n{rocs}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SlotPrefix:
    """The leading tokens of a slot whose keys and values are known to be right."""

    prefix_key: str
    token_ids: tuple[int, ...]

    def num_shared(self, prefix_key: str, token_ids: Sequence[int]) -> int:
        """Leading tokens that a request shares, fewer than it has: the last one must be computed to be answered."""
        if prefix_key != self.prefix_key:
            return 0
        most = min(len(self.token_ids), len(token_ids) - 1)
        pairs = zip(self.token_ids[:most], token_ids[:most], strict=True)
        return next((idx for idx, (own, other) in enumerate(pairs) if own != other), most)


class SlotPrefixes:
    """Prefixes by slot, the one used longest ago first."""

    def __init__(self) -> None:
        self._prefixes: dict[int, SlotPrefix] = {}

    def __getitem__(self, slot: int) -> SlotPrefix:
        return self._prefixes[slot]

    def __contains__(self, slot: int) -> bool:
        return slot in self._prefixes

    def __iter__(self) -> Iterator[int]:
        return iter(self._prefixes)

    def best(self, prefix_key: str, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """The slot that shares most leading tokens with a request, and how many; None if none shares any."""
        shared = {slot: prefix.num_shared(prefix_key, token_ids) for slot, prefix in self._prefixes.items()}
        slot = max(shared, key=shared.__getitem__, default=None)
        return None if slot is None or shared[slot] == 0 else (slot, shared[slot])

    def put(self, slot: int, prefix: SlotPrefix) -> None:
        """Note what a slot holds, as the one used last."""
        self._prefixes.pop(slot, None)
        self._prefixes[slot] = prefix

    def mark_used(self, slot: int) -> None:
        """A known slot was copied from: it is the one used last."""
        self.put(slot, self._prefixes[slot])

    def drop(self, slot: int) -> None:
        """Forget a slot, if it is known."""
        self._prefixes.pop(slot, None)


class PagePrefixes:
    """Full pages by the hash of everything that decides their content.

    A page's hash covers the prefix key, its own tokens and, through its predecessor's hash, all tokens before.
    Pages that no sequence holds are kept in the order in which they may be evicted.

    Args:
        page_size: positions of a page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._digest_of

    @property
    def idle(self) -> frozenset[int]:
        """Pages that are kept though no sequence holds them."""
        return frozenset(self._idle)

    @property
    def num_idle(self) -> int:
        """Their number."""
        return len(self._idle)

    def find(self, prefix_key: str, token_ids: Sequence[int]) -> list[int]:
        """Pages that hold a request's leading tokens, but never all of them: the last one must be computed."""
        pages: list[int] = []
        for digest in self._digests(prefix_key, token_ids[:-1]):
            if (page := self._page_of.get(digest)) is None:
                break
            pages.append(page)
        return pages

    def register(self, prefix_key: str, token_ids: Sequence[int], pages: Sequence[int]) -> None:
        """Note what the pages of a sequence hold, as far as they are full. A prefix that is known already keeps the
        page it has."""
        for digest, page in zip(self._digests(prefix_key, token_ids), pages, strict=False):
            if digest not in self._page_of and page not in self._digest_of:
                self._page_of[digest] = page
                self._digest_of[page] = digest

    def hold(self, page: int) -> None:
        """A sequence takes a page: it cannot be evicted."""
        self._idle.pop(page, None)

    def rest(self, page: int) -> None:
        """The last sequence gave a page back: it is the last one to be evicted."""
        self._idle[page] = None

    def evict(self) -> int:
        """Forget the page that rests longest, and return it."""
        page = next(iter(self._idle))
        del self._idle[page]
        del self._page_of[self._digest_of.pop(page)]
        return page

    def check_integrity(self) -> None:
        """AssertionError unless hashes and pages are one to one, and only known pages rest."""
        assert {page: digest for digest, page in self._page_of.items()} == self._digest_of, "hashes and pages disagree"
        assert self._idle.keys() <= self._digest_of.keys(), "an unknown page rests"

    def _digests(self, prefix_key: str, token_ids: Sequence[int]) -> Iterator[bytes]:
        digest = prefix_key.encode()
        for start in range(0, len(token_ids) - self._page_size + 1, self._page_size):
            tokens = array("q", token_ids[start : start + self._page_size])
            digest = hashlib.sha256(digest + b"\n" + tokens.tobytes()).digest()
            yield digest
