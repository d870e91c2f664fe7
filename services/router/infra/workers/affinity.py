"""Who read the beginning of a prompt last, under the same plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from services.router.request import ChatPrompt, TokenPrompt, WorkOrder

_BLOCK_CHARS = 512
_BLOCK_TOKENS = 128
_MAX_BLOCKS = 64


class PrefixAffinity:
    """Remembers where the blocks of prompts went, the most recent ones.

    A prefix cache never shares between plans, so neither does a key here: it is a hash over the plan's digest and all
    of the prompt up to the end of a block. A block is a turn of a conversation, or a piece of a text.

    Blocks are held in two halves: what is used moves to the young one, and when that is full, the old one is dropped
    whole. A block survives half of the capacity in newer ones, for a fraction of the memory of a list by age.

    Args:
        capacity: most blocks that are remembered. As many as a few workers' caches hold: one of 128 tokens each, 32,768
            are four million tokens.
    """

    def __init__(self, *, capacity: int = 32_768) -> None:
        self._half = max(1, capacity // 2)
        self._young: dict[bytes, str] = {}
        self._old: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def shares(self, keys: tuple[bytes, ...]) -> Mapping[str, float]:
        """For each worker that read the beginning: the share of the blocks up to the last that went there."""
        found: dict[str, float] = {}
        for place, key in enumerate(keys, start=1):
            address = self._young.get(key) or self._old.get(key)
            if address is not None:
                self._put(key, address)
                found[address] = place / len(keys)
        return found

    def remember(self, keys: tuple[bytes, ...], address: str) -> None:
        """A prompt went to a worker."""
        for key in keys:
            self._put(key, address)

    def forget(self, address: str) -> None:
        """A worker is gone, and its cache with it."""
        for half in (self._young, self._old):
            for key in [key for key, there in half.items() if there == address]:
                del half[key]

    def _put(self, key: bytes, address: str) -> None:
        self._old.pop(key, None)
        if key not in self._young and len(self._young) >= self._half:
            self._young, self._old = {}, self._young
        self._young[key] = address


def prefix_keys(order: WorkOrder) -> tuple[bytes, ...]:
    """One key for each block of an order's prompt, in order; each depends on everything before it."""
    chain = hashlib.blake2b(order.plan.digest.encode(), digest_size=8)
    keys: list[bytes] = []
    for block in _blocks(order):
        chain.update(len(block).to_bytes(8, "little") + block)
        keys.append(chain.copy().digest())
        if len(keys) == _MAX_BLOCKS:
            break
    return tuple(keys)


def _blocks(order: WorkOrder) -> Iterator[bytes]:
    prompt = order.request.prompt
    if isinstance(prompt, ChatPrompt):
        if prompt.tools:
            yield _encoded(prompt.tools)
        for turn in prompt.messages:
            calls = "".join(f"{call.name}{call.arguments}" for call in turn.tool_calls)
            yield _encoded(f"{turn.role}:{turn.name}:{turn.content}{calls}")
    elif isinstance(prompt, TokenPrompt):
        for start in range(0, len(prompt.token_ids), _BLOCK_TOKENS):
            yield repr(prompt.token_ids[start : start + _BLOCK_TOKENS]).encode()
    else:
        for start in range(0, len(prompt.text), _BLOCK_CHARS):
            yield _encoded(prompt.text[start : start + _BLOCK_CHARS])


def _encoded(text: str) -> bytes:
    """A stranger's text may hold halves of characters."""
    return text.encode("utf-8", "surrogatepass")
