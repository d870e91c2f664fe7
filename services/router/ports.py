"""What the router's work needs of the world, named by the need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.router.answer import TokenizedPrompt, WorkerEvent
from services.router.catalog import CatalogView
from services.router.plan_record import PlanRecord, SessionRecord
from services.router.request import Prompt, WorkOrder


class TextEmbedder(Protocol):
    """Places a text in the space of the adapters' samples."""

    @property
    def encoder_id(self) -> str | None:
        """Name and fingerprint of the encoder, or None while it loads."""
        ...

    async def embed(self, text: str) -> NDArray[np.float32]:
        """The embedding `[E]` of norm 1.

        Raises:
            Unavailable: `encoder_loading`, until the encoder is there; `encoder_failed` and `encoder_timeout`, if it
                gives none.
        """
        ...

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the encoder reads of some texts together. Raises as `embed`."""
        ...


class Catalog(Protocol):
    """The registered adapters, kept current behind the caller's back."""

    def view(self) -> CatalogView:
        """The newest picture. Never waits.

        Raises:
            RegistryUnavailable: `catalog_not_loaded`, before the first snapshot.
        """
        ...

    @property
    def is_following(self) -> bool:
        """Whether changes arrive at the moment; if not, the last picture stays in use."""
        ...

    async def wait_beyond(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        """Whether the fitted model moved past a generation before the time was over."""
        ...


class WorkerDirectory(Protocol):
    """Where workers can be found."""

    async def addresses(self) -> frozenset[str]:
        """`host:port` of every worker there is at this moment, in short time.

        Raises:
            Unavailable: `worker_directory_away`; who asked goes on with what it knew.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """What is known of one worker at one moment."""

    address: str
    is_live: bool
    """Whether it may be sent requests."""
    is_leaving: bool
    """Whether it finishes what it has, and gets nothing new."""
    circuit: str
    """`closed`, `open` or `half_open`."""
    num_in_flight: int
    """Requests of this router that are there."""
    num_requests: int
    """Requests that it said it had, of all routers."""
    catalog_generation: int
    kv_cache_usage: float
    """Share in use, 0 to 1."""
    num_resident_adapters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFleet:
    """What is known of the workers at one moment."""

    num_configured: int
    num_live: int
    """Workers that answer and take requests."""
    highest_catalog_generation: int
    """Of the live ones; 0 without any."""
    base_model: str | None
    """As the workers name it; None before one was reached."""
    max_model_len: int | None
    """Tokens of the smallest live context; None before a worker was reached."""
    workers: tuple[WorkerStatus, ...] = ()
    """Each of them, those that leave last."""


class Workers(Protocol):
    """Machines that generate."""

    def fleet(self) -> WorkerFleet:
        """The last known state. Never waits."""
        ...

    def generate(self, order: WorkOrder) -> AsyncGenerator[WorkerEvent]:
        """Run one order on a worker at or above its plan's catalogue generation.

        Closing the generator, or cancelling its consumer, aborts the work. If the worker is lost another one may be
        given the order; every event and token still comes exactly once, or the stream ends with an error.

        Raises:
            NoWorkerAvailable: no live worker, or none reached the plan's generation in time.
            Unavailable: the worker went away (`worker_lost`, `worker_stalled`) and no other one could go on, or the
                time was over (`request_timeout`).
            Exhausted: every worker that was asked is full; the error names the shortest wait.
            HiloraError: whatever the worker itself raised.
        """
        ...

    async def tokenize(self, prompt: Prompt, *, omits_special_tokens: bool = False) -> TokenizedPrompt:
        """The tokens that a prompt would become.

        Raises:
            NoWorkerAvailable: no live worker.
            HiloraError: whatever the worker itself raised.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens. Raises as `tokenize`."""
        ...


class PlanStore(Protocol):
    """Plans by their ids, for some time. What is put under an id is always the same plan."""

    async def get(self, key: str, /) -> PlanRecord | None:
        """The plan; None if it is not, or not any more, remembered. Never fails."""
        ...

    async def put(self, key: str, record: PlanRecord, /) -> None:
        """Remember a plan, or remember it for longer. Others may have to go. Never fails."""
        ...


class SessionStore(Protocol):
    """Where sessions stand, for some time since they last moved."""

    async def get(self, key: str, /) -> SessionRecord | None:
        """What was put last; None if that is not, or not any more, remembered. Never fails."""
        ...

    async def put(self, key: str, record: SessionRecord, /) -> None:
        """Replace what is remembered. Others may have to go. Never fails."""
        ...
