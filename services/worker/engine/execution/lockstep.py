"""What a leader tells its followers so that they compute the same step.

Shapes: T packed tokens of a step, S rows of logits.

Followers keep books of their own and are told what happened to the leader's: their KV cache sees the same calls in the
same order, so it makes the same choices. A step itself is told by numbers; each process makes its own tensors of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.execution.batch import StepBatch
from services.worker.engine.kv.kv_cache import KvCache
from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.lora.gating.batch_plan import StepRocs, StepRocsBuilder
from services.worker.lora.gating.gate_mirror import GateChange
from services.worker.lora.pool.pool_mirror import MirrorChange
from services.worker.models.attention import AttentionStep


@dataclass(frozen=True, kw_only=True, slots=True)
class KvAllocation:
    """`KvCache.allocate` succeeded."""

    owner: str
    token_ids: tuple[int, ...]
    prefix_key: str | None
    num_cached_tokens: int
    """What it returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvReservation:
    """`KvCache.reserve` was called."""

    owner: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KvRelease:
    """`KvCache.free` was called."""

    owner: str
    token_ids: tuple[int, ...]
    num_written: int
    is_reusable: bool


KvCall = KvAllocation | KvReservation | KvRelease


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLayout:
    """Whose tokens a step's rows are; see `KvCache.attention_step` and `StepRocsBuilder.build`."""

    decodes: tuple[tuple[str, int], ...]
    chunks: tuple[tuple[str, int, int, int], ...]
    decode_plans: tuple[RoutingPlan, ...]
    chunk_plans: tuple[tuple[slice, slice | None, RoutingPlan], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LockstepMessage:
    """One step, and what happened since the last one."""

    kv_calls: tuple[KvCall, ...]
    mirror: MirrorChange
    gates: GateChange
    layout: StepLayout
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    logit_rows: tuple[int, ...]


class JournaledKvCache:
    """A `KvCache` that remembers what was done to it, for followers to repeat.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: KvCache) -> None:
        self._inner = inner
        self._calls: list[KvCall] = []
        self.last_step: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int, int, int], ...]] = ((), ())
        """Decodes and chunks of the last attention step, by owner."""

    def take_calls(self) -> tuple[KvCall, ...]:
        """What was done since the last time."""
        calls = tuple(self._calls)
        self._calls.clear()
        return calls

    @property
    def num_layers(self) -> int:
        """See `KvCache`."""
        return self._inner.num_layers

    @property
    def usage(self) -> float:
        """See `KvCache`."""
        return self._inner.usage

    @property
    def owners(self) -> frozenset[str]:
        """See `KvCache`."""
        return self._inner.owners

    def can_admit(self, num_tokens: int) -> bool:
        """See `KvCache`."""
        return self._inner.can_admit(num_tokens)

    def allocate(self, owner: str, token_ids: Sequence[int], *, prefix_key: str | None) -> KvHandle:
        """See `KvCache`."""
        handle = self._inner.allocate(owner, token_ids, prefix_key=prefix_key)
        self._calls.append(
            KvAllocation(
                owner=owner,
                token_ids=tuple(token_ids),
                prefix_key=prefix_key,
                num_cached_tokens=handle.num_cached_tokens,
            )
        )
        return handle

    def reserve(self, handle: KvHandle, num_tokens: int) -> bool:
        """See `KvCache`."""
        self._calls.append(KvReservation(owner=handle.owner, num_tokens=num_tokens))
        return self._inner.reserve(handle, num_tokens)

    def free(self, handle: KvHandle, *, token_ids: Sequence[int], num_written: int, is_reusable: bool) -> None:
        """See `KvCache`."""
        self._calls.append(
            KvRelease(owner=handle.owner, token_ids=tuple(token_ids), num_written=num_written, is_reusable=is_reusable)
        )
        self._inner.free(handle, token_ids=token_ids, num_written=num_written, is_reusable=is_reusable)

    def attention_step(
        self,
        decodes: Sequence[tuple[KvHandle, int]],
        chunks: Sequence[tuple[KvHandle, int, int, int]],
        device: torch.device,
    ) -> AttentionStep:
        """See `KvCache`."""
        self.last_step = (
            tuple((handle.owner, position) for handle, position in decodes),
            tuple((handle.owner, row, start, num_tokens) for handle, row, start, num_tokens in chunks),
        )
        return self._inner.attention_step(decodes, chunks, device)

    def check_integrity(self) -> None:
        """See `KvCache`."""
        self._inner.check_integrity()


class JournaledRocsBuilder(StepRocsBuilder):
    """A `StepRocsBuilder` that remembers the plans of the last step. The arguments are the same."""

    last_decode_plans: tuple[RoutingPlan, ...] = ()
    last_chunk_plans: tuple[tuple[slice, slice | None, RoutingPlan], ...] = ()

    def build(
        self, *, decode_plans: Sequence[RoutingPlan], chunk_plans: Sequence[tuple[slice, slice | None, RoutingPlan]]
    ) -> StepRocs | None:
        """See `StepRocsBuilder`."""
        self.last_decode_plans, self.last_chunk_plans = tuple(decode_plans), tuple(chunk_plans)
        return super().build(decode_plans=decode_plans, chunk_plans=chunk_plans)


class KvReplay:
    """The leader's calls, repeated on another KV cache.

    Args:
        kv_cache: of the same kind and size as the leader's.
    """

    def __init__(self, kv_cache: KvCache) -> None:
        self._kv_cache = kv_cache
        self._handles: dict[str, KvHandle] = {}

    def repeat(self, calls: Sequence[KvCall]) -> None:
        """Do what the leader did. AssertionError if it does not come to the same."""
        for call in calls:
            match call:
                case KvAllocation():
                    handle = self._kv_cache.allocate(call.owner, call.token_ids, prefix_key=call.prefix_key)
                    assert handle.num_cached_tokens == call.num_cached_tokens, "two caches know different prefixes"
                    self._handles[call.owner] = handle
                case KvReservation():
                    self._kv_cache.reserve(self._handles[call.owner], call.num_tokens)
                case KvRelease():
                    self._kv_cache.free(
                        self._handles.pop(call.owner),
                        token_ids=call.token_ids,
                        num_written=call.num_written,
                        is_reusable=call.is_reusable,
                    )

    def attention_step(self, layout: StepLayout, device: torch.device) -> AttentionStep:
        """Where the step's tokens stand in this cache."""
        return self._kv_cache.attention_step(
            [(self._handles[owner], position) for owner, position in layout.decodes],
            [(self._handles[owner], row, start, size) for owner, row, start, size in layout.chunks],
            device,
        )


def follower_batch(
    message: LockstepMessage, replay: KvReplay, builder: StepRocsBuilder, *, device: torch.device
) -> StepBatch:
    """The tensors of the leader's step, made here; nothing is sampled from them."""
    layout = message.layout
    return StepBatch(
        token_ids_T=torch.tensor(message.token_ids, dtype=torch.int64, device=device),
        positions_T=torch.tensor(message.positions, dtype=torch.int64, device=device),
        logit_rows_S=torch.tensor(message.logit_rows, dtype=torch.int64, device=device),
        sampling=(),
        sampled=(),
        prompt_logits=(),
        attention=replay.attention_step(layout, device),
        rocs=builder.build(decode_plans=layout.decode_plans, chunk_plans=layout.chunk_plans),
    )
