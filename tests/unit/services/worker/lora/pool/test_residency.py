from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.errors import RegistryUnavailable
from services.worker.lora.pool.residency import Residency, ResidencyTicket, TicketState
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.components import InMemoryComponentSource
from tests.builders.models import make_adapter

_SHAPES = {"q": (6, 4), "up": (6, 10)}
_ADAPTER_BYTES = 2 * 4 * ((6 + 4 + 1) + (6 + 10 + 1))


def _key(name: str) -> RocKey:
    return RocKey(name, RocBasis.TRAINED)


class _World:
    """A residency over a pool for a few adapters of equal size, and a clock that stands still."""

    def __init__(self, num_fitting: int, *, num_threads: int = 2) -> None:
        self.source = InMemoryComponentSource({name: make_adapter(_SHAPES, rank=2) for name in "abcdefgh"})
        self.now = 0.0
        self.pool = RocPool(
            modules=[ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()],
            capacity_bytes=num_fitting * _ADAPTER_BYTES,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.has_progressed = threading.Event()
        self.residency = Residency(
            pool=self.pool,
            source=self.source,
            num_threads=num_threads,
            on_progress=self.has_progressed.set,
            fetch_timeout_seconds=30.0,
            max_placing_seconds=2.0,
            clock=lambda: self.now,
        )
        self.tickets: list[ResidencyTicket] = []

    def open(self, *names: str) -> ResidencyTicket:
        self.tickets.append(self.residency.open_keys([_key(name) for name in names]))
        return self.tickets[-1]

    def close(self, ticket: ResidencyTicket) -> None:
        self.residency.close(ticket)
        self.tickets.remove(ticket)

    def poll_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, [ticket.state for ticket in self.tickets]
            self.has_progressed.wait(0.05)
            self.has_progressed.clear()
            self.poll()

    def poll(self) -> None:
        self.residency.poll()
        self.residency.check_integrity(self.tickets)

    def ready(self, *names: str) -> ResidencyTicket:
        ticket = self.open(*names)
        self.poll_until(lambda: ticket.is_ready)
        return ticket


@pytest.fixture
def world() -> Iterator[_World]:
    world = _World(3)
    yield world
    world.source.gate.set()
    world.residency.shutdown()


class TestLoading:
    def test_what_is_resident_is_ready_at_once(self, world) -> None:
        world.close(world.ready("a", "b"))
        ticket = world.open("b", "a")
        assert ticket.is_ready
        assert world.source.num_fetches == 2
        stats = world.pool.stats()
        assert (stats.num_hits, stats.num_misses, stats.num_loads) == (2, 2, 2)

    def test_requests_that_want_the_same_fetch_it_once(self, world) -> None:
        world.source.gate.clear()
        first, second = world.open("a"), world.open("a", "b")
        world.source.gate.set()
        world.poll_until(lambda: first.is_ready and second.is_ready)
        assert world.source.num_fetches == 2

    def test_a_failing_write_fails_those_who_wait_for_it(self, world, monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise OSError("no")

        monkeypatch.setattr(world.pool, "write", fail)
        first, second = world.open("a"), world.open("a", "b")
        world.poll_until(lambda: first.state is second.state is TicketState.FAILED)
        assert first.error.code == "component_load_failed"
        world.poll_until(lambda: not world.residency._writes)
        assert world.pool.used_bytes == 0

    def test_a_fetch_that_fails_while_it_is_looked_at_fails_its_ticket(self, world, monkeypatch) -> None:
        world.source.faults["a"] = RegistryUnavailable("away")
        world.source.gate.clear()
        ticket = world.open("a")
        plain_done = Future.done

        def done_just_before_the_end(future: Future) -> bool:
            is_done = plain_done(future)
            world.source.gate.set()
            wait([future])
            return is_done

        with monkeypatch.context() as patched:
            patched.setattr(Future, "done", done_just_before_the_end)
            assert not world.residency._fetches.is_done(ticket)
        world.poll()
        assert ticket.state is TicketState.FAILED
        assert isinstance(ticket.error, RegistryUnavailable)

    def test_a_queue_longer_than_the_pool_does_not_fill_main_memory(self, world) -> None:
        held = world.ready("a", "b", "c")
        waiting = [world.open(name) for name in "defgh"]
        world.poll_until(lambda: world.residency._fetches.held_bytes > 0)
        late = world.open("d", "e", "f", "g")
        world.close(held)
        for ticket in waiting:
            world.poll_until(lambda ticket=ticket: ticket.is_ready)
            world.close(ticket)
        # More than the pool can hold at all.
        world.poll_until(lambda: late.state is TicketState.FAILED)
        assert late.error.code == "plan_exceeds_roc_pool"

    def test_retired_while_it_was_fetched_it_does_not_stay(self, world) -> None:
        world.source.gate.clear()
        ticket = world.open("a")
        world.pool.retire("a")
        world.source.gate.set()
        world.poll_until(lambda: ticket.is_ready)
        world.close(ticket)
        assert world.pool.used_bytes == 0


class TestDeadlines:
    def test_hung_downloads_do_not_hold_up_others(self, world) -> None:
        world.source.gate.clear()
        hung = [world.open("a"), world.open("b")]
        world.poll_until(lambda: world.source.num_fetches == 2)
        healthy = world.open("c")
        world.now = 29.0
        world.poll()
        assert [ticket.state for ticket in hung] == [TicketState.FETCHING] * 2
        healthy.since = 29.0
        world.now = 31.0
        world.poll()
        assert [ticket.error.code for ticket in hung] == ["component_fetch_timeout"] * 2
        world.poll_until(lambda: world.source.num_fetches == 3)
        world.source.gate.set()
        world.poll_until(lambda: healthy.is_ready)

    def test_another_attempt_is_another_fetch(self, world) -> None:
        world.source.gate.clear()
        hung = world.open("a")
        world.now = 31.0
        world.poll()
        assert hung.state is TicketState.FAILED
        world.close(hung)
        again = world.open("a")
        world.source.gate.set()
        world.poll_until(lambda: again.is_ready)

    def test_a_hung_fetch_is_replaced_though_others_still_wait_for_it(self, world) -> None:
        world.source.gate.clear()
        hung = world.open("a")
        world.poll_until(lambda: world.source.num_fetches == 1)
        world.now = 20.0
        on_it_too = world.open("a")
        world.now = 31.0
        world.poll()
        assert (hung.state, on_it_too.state) == (TicketState.FAILED, TicketState.FETCHING)
        again = world.open("a")
        world.poll_until(lambda: world.source.num_fetches == 2)
        world.now = 52.0
        world.poll()
        assert (on_it_too.state, again.state) == (TicketState.FAILED, TicketState.FETCHING)
        world.source.gate.set()
        world.poll_until(lambda: again.is_ready)

    def test_a_hung_fetch_that_comes_after_all_serves_those_who_are_on_it(self, world) -> None:
        world.source.gate.clear()
        world.open("a")
        world.poll_until(lambda: world.source.num_fetches == 1)
        world.now = 20.0
        on_it_too = world.open("a")
        world.now = 31.0
        world.poll()
        world.source.gate.set()
        world.poll_until(lambda: on_it_too.is_ready)
        assert world.source.num_fetches == 1

    def test_after_a_shutdown_tickets_may_still_be_opened(self, world) -> None:
        world.source.gate.clear()
        for name in "abc":
            world.open(name)
        world.residency.shutdown()
        late = world.open("d")
        world.poll_until(lambda: late.state is TicketState.FAILED)
        assert late.error.code == "worker_draining"

    def test_a_write_that_a_shutdown_forestalls_fails_its_ticket_and_frees_its_rows(self, world, monkeypatch) -> None:
        has_begun, may_write = threading.Event(), threading.Event()
        write = world.pool.write

        def slow_write(*args) -> None:
            has_begun.set()
            assert may_write.wait(timeout=30)
            write(*args)

        monkeypatch.setattr(world.pool, "write", slow_write)
        running, queued = world.open("a"), world.open("b")
        world.poll_until(lambda: running.state is queued.state is TicketState.WRITING)
        assert has_begun.wait(timeout=30)
        world.residency.shutdown()
        world.poll_until(lambda: queued.state is TicketState.FAILED)
        assert queued.error.code == "worker_draining"
        may_write.set()
        world.poll_until(lambda: running.is_ready)
        assert world.pool.used_bytes == _ADAPTER_BYTES


class TestFairness:
    def test_overlapping_requests_for_residents_do_not_starve_a_cold_one(self, world) -> None:
        held = [world.ready(name) for name in "abc"]
        cold = world.open("d")
        world.poll_until(lambda: cold.state is TicketState.PLACING)
        # Each adapter always has a request: the next comes before the last has gone.
        for turn in range(6):
            following = world.open("abc"[turn % 3])
            assert following.is_ready
            world.close(held.pop(0))
            held.append(following)
            world.poll()
        assert cold.state is TicketState.PLACING
        world.now = 2.5
        world.poll()
        following = [world.open(name) for name in "abc"]
        (barred,) = [ticket for ticket in following if not ticket.is_ready]
        for ticket in [ticket for ticket in held if ticket.keys == barred.keys]:
            world.close(ticket)
        world.poll_until(lambda: cold.is_ready)
        world.close(cold)
        world.poll_until(lambda: barred.is_ready)

    def test_who_gives_up_waiting_ends_the_drain(self, world) -> None:
        held = world.ready("a", "b", "c")
        cold = world.open("d")
        world.poll_until(lambda: cold.state is TicketState.PLACING)
        world.now = 2.5
        world.poll()
        assert world.pool.is_draining
        world.close(cold)
        assert not world.pool.is_draining
        assert world.open("a", "b", "c").is_ready
        world.close(held)

    def test_room_that_comes_while_it_is_refused_is_not_missed(self, world, monkeypatch) -> None:
        world.close(world.ready("a"))
        held = world.ready("b", "c")
        world.pool.pin(_key("a"))
        try_acquire = world.pool.try_acquire

        def refuse_and_be_overtaken(keys, missing) -> bool:
            is_placed = try_acquire(keys, missing)
            if not is_placed:
                # What a registry's notice on another thread does between the refusal and what follows it.
                world.pool.retire("a")
            return is_placed

        monkeypatch.setattr(world.pool, "try_acquire", refuse_and_be_overtaken)
        cold = world.open("d")
        world.poll_until(lambda: cold.is_ready)
        world.close(held)

    def test_younger_ones_do_not_overtake_for_room(self, world) -> None:
        held = world.ready("a")
        large = world.open("b", "c", "d")
        world.poll_until(lambda: large.state is TicketState.PLACING)
        small = world.open("e")
        world.poll_until(lambda: small.state is TicketState.PLACING)
        world.poll()
        assert small.state is TicketState.PLACING
        # Its elder gives up: nothing in the pool has changed, and yet it may go.
        world.close(large)
        world.poll_until(lambda: small.is_ready)
        world.close(held)


class TestPinning:
    def test_a_pinned_adapter_stays_until_it_is_retired(self, world) -> None:
        world.residency.pin(_key("a"))
        world.poll_until(lambda: world.pool.stats().pinned_bytes == _ADAPTER_BYTES)
        for name in "bcdefg":
            world.close(world.ready(name))
        assert world.open("a").is_ready
        world.close(world.tickets[-1])
        world.pool.retire("a")
        assert world.pool.stats().pinned_bytes == 0
        assert not world.pool.is_known(_key("a"))

    def test_a_pin_waits_for_its_source(self, world) -> None:
        world.source.faults["a"] = RegistryUnavailable("away")
        world.residency.pin(_key("a"))
        world.poll_until(lambda: world.source.num_fetches == 1 and not world.residency._pinning.tickets)
        world.source.faults.clear()
        world.poll()
        assert world.source.num_fetches == 1
        world.now = 31.0
        world.poll_until(lambda: world.pool.stats().pinned_bytes == _ADAPTER_BYTES)

    def test_a_pin_of_what_is_nowhere_is_given_up(self, world, caplog) -> None:
        world.residency.pin(_key("nowhere"))
        world.poll_until(lambda: "cannot pin nowhere" in caplog.text)
        world.now = 1000.0
        world.poll()
        assert world.source.num_fetches == 1
