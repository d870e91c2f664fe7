"""Who read the beginning of a prompt last, under the same plan."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from services.router.request import ChatPrompt, TokenPrompt, WorkOrder

_BLOCK_CHARS = 512
_BLOCK_TOKENS = 128
_MAX_BLOCKS = 64


class PrefixAffinity:
    """Remembers where the blocks of prompts went, the most recent ones.

    A prefix cache never shares between plans, so neither does a key here: it is a hash over the plan's digest and all
    of the prompt up to the end of a block. A block is a turn of a conversation, or a piece of a text.

    Args:
        capacity: blocks that are remembered.
    """

    def __init__(self, *, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._addresses: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._addresses)

    def shares(self, keys: tuple[bytes, ...]) -> Mapping[str, float]:
        """For each worker that read the beginning: the share of the blocks up to the last that went there."""
        found: dict[str, float] = {}
        for place, key in enumerate(keys, start=1):
            address = self._addresses.get(key)
            if address is not None:
                self._addresses.move_to_end(key)
                found[address] = place / len(keys)
        return found

    def remember(self, keys: tuple[bytes, ...], address: str) -> None:
        """A prompt went to a worker."""
        for key in keys:
            self._addresses[key] = address
            self._addresses.move_to_end(key)
        while len(self._addresses) > self._capacity:
            self._addresses.popitem(last=False)

    def forget(self, address: str) -> None:
        """A worker is gone, and its cache with it."""
        for key in [key for key, there in self._addresses.items() if there == address]:
            del self._addresses[key]


def prefix_keys(order: WorkOrder) -> tuple[bytes, ...]:
    """One key for each block of an order's prompt, in order; each depends on everything before it."""
    chain = hashlib.blake2b(order.plan.digest.encode(), digest_size=16)
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
