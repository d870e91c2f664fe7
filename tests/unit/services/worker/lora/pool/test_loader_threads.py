from __future__ import annotations

import os
import sys
import threading
import time
import weakref

import pytest

from services.worker.lora.pool import loader_threads
from services.worker.lora.pool.loader_threads import LoaderThreads


class TestLoaderThreads:
    def test_results_and_errors_reach_their_futures(self) -> None:
        threads = LoaderThreads[int](2, name="test")
        assert [threads.submit(pow, 2, number).result(timeout=10) for number in range(5)] == [1, 2, 4, 8, 16]
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 // 0).result(timeout=10)
        threads.shutdown()

    def test_at_most_so_many_at_a_time(self) -> None:
        threads, gate = LoaderThreads[bool](2, name="test"), threading.Event()
        started = threading.Semaphore(0)

        def wait() -> bool:
            started.release()
            return gate.wait(10)

        futures = [threads.submit(wait) for _ in range(3)]
        assert started.acquire(timeout=10)
        assert started.acquire(timeout=10)
        assert not started.acquire(blocking=False)
        gate.set()
        assert all(future.result(timeout=10) for future in futures)
        threads.shutdown()

    def test_one_that_hangs_can_be_replaced(self) -> None:
        threads, gate, has_begun = LoaderThreads[bool](1, name="test"), threading.Event(), threading.Event()

        def hang() -> bool:
            has_begun.set()
            return gate.wait(10)

        hung = threads.submit(hang)
        behind = threads.submit(lambda: True)
        assert has_begun.wait(10)
        threads.write_off(hung)
        assert behind.result(timeout=10)
        assert not hung.done()
        gate.set()
        assert hung.result(timeout=10)
        assert threads.submit(lambda: True).result(timeout=10)
        threads.shutdown()

    def test_after_a_shutdown_nothing_runs(self) -> None:
        threads, gate, has_begun = LoaderThreads[bool](1, name="test"), threading.Event(), threading.Event()

        def hold() -> bool:
            has_begun.set()
            return gate.wait(10)

        running = threads.submit(hold)
        waiting = threads.submit(lambda: True)
        assert has_begun.wait(10)
        threads.shutdown()
        assert waiting.cancelled()
        assert threads.submit(lambda: True).cancelled()
        gate.set()
        assert running.result(timeout=10)
        threads.join(timeout_seconds=10)

    def test_at_the_end_of_the_process_one_has_the_time_of_all(self, monkeypatch) -> None:
        loaders, has_begun = [LoaderThreads[None](1, name="test") for _ in range(20)], threading.Event()

        def work() -> None:
            has_begun.set()
            time.sleep(0.5)

        running = loaders[-1].submit(work)
        assert has_begun.wait(10)
        monkeypatch.setattr(loader_threads, "_all_loaders", loaders)
        loader_threads._end_threads()
        assert running.done()

    def test_an_idle_thread_keeps_neither_task_nor_result(self) -> None:
        class Large:
            """Something that can be watched."""

        def work(argument: Large) -> Large:
            assert argument
            return Large()

        threads, argument = LoaderThreads[Large](1, name="test"), Large()
        future = threads.submit(work, argument)
        watched = [weakref.ref(argument), weakref.ref(future.result(timeout=10))]
        del argument, future
        deadline = time.monotonic() + 2
        while any(reference() is not None for reference in watched) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [reference() for reference in watched] == [None, None]
        threads.shutdown()

    @pytest.mark.skipif(sys.platform != "linux", reason="priorities by thread are Linux's")
    def test_they_give_way_to_the_thread_that_submits(self) -> None:
        threads = LoaderThreads[int](1, name="test")
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        niceness = threads.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        assert niceness.result(timeout=10) > own
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
        threads.shutdown()
