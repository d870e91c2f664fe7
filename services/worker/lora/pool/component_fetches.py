"""Components on their way to host memory: one fetch for however many requests wait for it, each within its deadline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from hilora.adapter import DecomposedAdapter
from hilora.errors import Unavailable
from services.worker.lora.pool.loader_threads import LoaderThreads, failure_of
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.residency_ticket import ResidencyTicket
from services.worker.lora.pool.roc_arena import ComponentSizes
from services.worker.ports import ComponentSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCopy:
    """Components in host memory."""

    adapter: DecomposedAdapter
    sizes: ComponentSizes


@dataclass(kw_only=True, slots=True, eq=False)
class _Fetch:
    loading: Future[HostCopy]
    tickets: set[ResidencyTicket] = field(default_factory=set[ResidencyTicket])


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
        # What new tickets may join.
        self._fetches: dict[RocKey, _Fetch] = {}
        # Hung ones, for those who are on them already: they may come yet.
        self._written_off: set[_Fetch] = set()
        self._fetches_of: dict[ResidencyTicket, dict[RocKey, _Fetch]] = {}

    @property
    def held_bytes(self) -> int:
        """Device bytes of what is in host memory for waiting tickets, whether the host tier keeps it or not."""
        fetches = (*self._fetches.values(), *self._written_off)
        done = [fetch.loading for fetch in fetches if fetch.loading.done() and not fetch.loading.cancelled()]
        return sum(loading.result().sizes.num_bytes for loading in done if loading.exception() is None)

    def join(self, ticket: ResidencyTicket, key: RocKey) -> None:
        """Let a ticket wait for a key, starting its fetch if nobody else has."""
        own = self._fetches_of.setdefault(ticket, {})
        if key in own:
            return
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch(loading=self._threads.submit(self._load, key))
            fetch.loading.add_done_callback(lambda _: self._on_progress())
        fetch.tickets.add(ticket)
        own[key] = fetch

    def leave(self, ticket: ResidencyTicket) -> None:
        """Let a ticket wait for nothing more; what nobody waits for is let go of."""
        for key, fetch in self._fetches_of.pop(ticket, {}).items():
            fetch.tickets.remove(ticket)
            if not fetch.tickets:
                # The host tier keeps its own copy within its own limit.
                fetch.loading.cancel()
                self._remove(key, fetch)

    def is_done(self, ticket: ResidencyTicket) -> bool:
        """Whether everything that a ticket waits for is in host memory.

        Raises:
            BaseException: what one of its fetches raised.
            Unavailable: `worker_draining`: after a shutdown.
        """
        fetches = self._of(ticket)
        # Looked at once: one that ends while this runs counts from the next time on, with its error.
        done = [fetch.loading for fetch in fetches.values() if fetch.loading.done()]
        for loading in done:
            if (error := failure_of(loading)) is not None:
                raise error
        return len(done) == len(fetches)

    def copies(self, ticket: ResidencyTicket) -> dict[RocKey, HostCopy]:
        """What a ticket waited for and has got."""
        return {key: fetch.loading.result() for key, fetch in self._of(ticket).items()}

    def give_up(self, ticket: ResidencyTicket, *, after_seconds: float) -> Unavailable:
        """Write off the fetches that a ticket still waits for, so that those behind them go on, and the next ticket
        begins anew; returns its error."""
        late = {key: fetch for key, fetch in self._of(ticket).items() if not fetch.loading.done()}
        for key, fetch in late.items():
            _log.warning("the components of %s did not come within %g seconds", key.adapter_id, after_seconds)
            # One that has not begun does not hang: it is as good as a new one.
            if self._threads.write_off(fetch.loading):
                self._remove(key, fetch)
                self._written_off.add(fetch)
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
        for fetch in (*self._fetches.values(), *self._written_off):
            assert fetch.tickets, "a fetch is kept that nobody waits for"
            assert all(fetch in self._of(ticket).values() for ticket in fetch.tickets), "a fetch has a ticket too many"
        assert all(id(ticket) in pending for ticket in self._fetches_of), "a closed ticket waits for a fetch"

    def _of(self, ticket: ResidencyTicket) -> dict[RocKey, _Fetch]:
        return self._fetches_of.get(ticket, {})

    def _remove(self, key: RocKey, fetch: _Fetch) -> None:
        self._written_off.discard(fetch)
        # Perhaps another one has taken the place of one that was written off.
        if self._fetches.get(key) is fetch:
            del self._fetches[key]

    def _load(self, key: RocKey) -> HostCopy:
        adapter = self._source.fetch(key.adapter_id, key.basis)
        return HostCopy(adapter=adapter, sizes=self._sizes_of(adapter, key.adapter_id))
