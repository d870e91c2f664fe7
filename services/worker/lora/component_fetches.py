"""Components on their way to host memory: one fetch for however many requests wait for it, each within its deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from hilora.adapter import DecomposedAdapter
from hilora.errors import Unavailable
from services.worker.lora.loader_threads import LoaderThreads
from services.worker.lora.pool_entries import RocKey
from services.worker.lora.residency_ticket import ResidencyTicket
from services.worker.lora.roc_arena import ComponentSizes
from services.worker.ports import ComponentSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCopy:
    """Components in host memory."""

    adapter: DecomposedAdapter
    sizes: ComponentSizes


@dataclass(kw_only=True, slots=True)
class _Fetch:
    loading: Future[HostCopy]
    tickets: list[ResidencyTicket] = field(default_factory=list[ResidencyTicket])


class ComponentFetches:
    """Fetches that some ticket waits for. For the step loop's thread.

    Args:
        source: the host tier, and what is behind it.
        sizes_of: what an adapter will occupy on the device; raises if it does not fit the model.
        num_threads: fetches at a time.
        on_progress: called from a loader thread when a fetch has ended.
    """

    def __init__(
        self,
        *,
        source: ComponentSource,
        sizes_of: Callable[[DecomposedAdapter, str], ComponentSizes],
        num_threads: int,
        on_progress: Callable[[], None],
    ) -> None:
        self._source = source
        self._sizes_of = sizes_of
        self._on_progress = on_progress
        self._threads: LoaderThreads[HostCopy] = LoaderThreads(num_threads, name="roc-fetch")
        self._fetches: dict[RocKey, _Fetch] = {}

    @property
    def held_bytes(self) -> int:
        """Device bytes of what is in host memory for waiting tickets, whether the host tier keeps it or not."""
        done = [fetch.loading for fetch in self._fetches.values() if fetch.loading.done()]
        return sum(loading.result().sizes.num_bytes for loading in done if loading.exception() is None)

    def join(self, ticket: ResidencyTicket, key: RocKey) -> None:
        """Let a ticket wait for a key, starting its fetch if nobody else has."""
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch(loading=self._threads.submit(self._load, key))
            fetch.loading.add_done_callback(lambda _: self._on_progress())
        if ticket not in fetch.tickets:
            fetch.tickets.append(ticket)

    def leave(self, ticket: ResidencyTicket) -> None:
        """Let a ticket wait for nothing more; what nobody waits for is let go of."""
        for key in ticket.keys:
            fetch = self._fetches.get(key)
            if fetch is not None and ticket in fetch.tickets:
                fetch.tickets.remove(ticket)
                if not fetch.tickets:
                    # The host tier keeps its own copy within its own limit.
                    fetch.loading.cancel()
                    del self._fetches[key]

    def is_done(self, ticket: ResidencyTicket) -> bool:
        """Whether everything that a ticket waits for is in host memory.

        Raises:
            BaseException: what one of its fetches raised.
        """
        fetches = self._of(ticket)
        for fetch in fetches.values():
            if fetch.loading.done() and (error := fetch.loading.exception()) is not None:
                raise error
        return all(fetch.loading.done() for fetch in fetches.values())

    def copies(self, ticket: ResidencyTicket) -> dict[RocKey, HostCopy]:
        """What a ticket waited for and has got."""
        return {key: fetch.loading.result() for key, fetch in self._of(ticket).items()}

    def give_up(self, ticket: ResidencyTicket, *, after_seconds: float) -> Unavailable:
        """Write off the fetches that a ticket still waits for, so that those behind them go on; returns its error."""
        late = [key for key, fetch in self._of(ticket).items() if not fetch.loading.done()]
        for key in late:
            _log.warning("the components of %s did not come within %g seconds", key.adapter_id, after_seconds)
            self._threads.write_off(self._fetches[key].loading)
        names = ", ".join(key.adapter_id for key in late)
        return Unavailable(
            f"The components of {names} did not come within {after_seconds:g} seconds.",
            code="component_fetch_timeout",
            remedy="Try again; if it happens again, see whether the registry is reachable from this worker.",
            place=names,
        )

    def shutdown(self) -> None:
        """Start nothing more; fetches that hang are not waited for."""
        self._threads.shutdown()

    def check_integrity(self, pending: set[int]) -> None:
        """AssertionError if a fetch is kept for nobody, or for tickets other than these (by `id`)."""
        for key, fetch in self._fetches.items():
            assert fetch.tickets, f"nobody waits for {key}"
            assert all(id(ticket) in pending for ticket in fetch.tickets), f"a closed ticket waits for {key}"

    def _of(self, ticket: ResidencyTicket) -> dict[RocKey, _Fetch]:
        return {
            key: fetch
            for key in ticket.keys
            if (fetch := self._fetches.get(key)) is not None and ticket in fetch.tickets
        }

    def _load(self, key: RocKey) -> HostCopy:
        adapter = self._source.fetch(key.adapter_id, key.basis)
        return HostCopy(adapter=adapter, sizes=self._sizes_of(adapter, key.adapter_id))
