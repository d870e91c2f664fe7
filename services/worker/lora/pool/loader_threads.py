"""Threads for loading components, which give way to the thread that runs the steps.

Unlike those of `concurrent.futures` they do not keep a process from ending, they run below the priority of the step
loop where the system has priorities by thread, and one that hangs can be replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, ParamSpec, TypeVar

from hilora.errors import Unavailable

_ParamT = ParamSpec("_ParamT")
_ResultT = TypeVar("_ResultT")

_IDLE_SECONDS = 5.0
"""A thread without work for so long ends; the next task starts a new one."""
_NICENESS = 10
"""A thread that is so much nicer than another gets about a tenth of what both compete for."""
_EXIT_SECONDS = 2.0
"""At the end of the process, for tasks inside torch: an interpreter that ends under them aborts the process."""


class LoaderThreads(Generic[_ResultT]):
    """At most so many threads that run tasks in the order of their submission.

    Args:
        num_threads: how many at a time.
        name: prefix of the threads' names.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._max_threads = num_threads
        self._name = name
        self._tasks: deque[tuple[Future[_ResultT], Callable[[], _ResultT]]] = deque()
        self._has_task = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._running: dict[Future[_ResultT], threading.Thread] = {}
        self._num_idle = 0
        self._is_shut_down = False
        _all_loaders.add(self)

    def submit(
        self, task: Callable[_ParamT, _ResultT], /, *args: _ParamT.args, **kwargs: _ParamT.kwargs
    ) -> Future[_ResultT]:
        """Run a task on one of the threads. After a shutdown, its future is cancelled."""
        future: Future[_ResultT] = Future()
        with self._has_task:
            if self._is_shut_down:
                future.cancel()
                return future
            self._tasks.append((future, lambda: task(*args, **kwargs)))
            if self._num_idle < len(self._tasks) and len(self._threads) < self._max_threads:
                self._start_thread()
            self._has_task.notify()
        return future

    def write_off(self, future: Future[_ResultT]) -> bool:
        """Let a task that hangs no longer count: another thread takes its place, and its own ends when it returns.

        Returns:
            False for a task that is not running: it has not begun, or has ended.
        """
        with self._has_task:
            thread = self._running.pop(future, None)
            if thread is None:
                return False
            self._threads.discard(thread)
            if self._tasks:
                self._start_thread()
            return True

    def shutdown(self) -> None:
        """Run nothing more. Tasks that run are not waited for."""
        with self._has_task:
            self._is_shut_down = True
            while self._tasks:
                self._tasks.popleft()[0].cancel()
            self._has_task.notify_all()

    def join(self, *, timeout_seconds: float) -> None:
        """After a shutdown, wait so long for the threads to end."""
        deadline = time.monotonic() + timeout_seconds
        with self._has_task:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        _give_way()
        thread = threading.current_thread()
        while True:
            with self._has_task:
                while not self._tasks:
                    self._num_idle += 1
                    is_woken = not self._is_shut_down and self._has_task.wait(_IDLE_SECONDS)
                    self._num_idle -= 1
                    if not is_woken and not self._tasks:
                        self._threads.discard(thread)
                        return
                future, task = self._tasks.popleft()
                if not future.set_running_or_notify_cancel():
                    del future, task
                    continue
                self._running[future] = thread
            try:
                result = task()
            except BaseException as error:  # whatever it is, the future's owner is told
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            with self._has_task:
                self._running.pop(future, None)
                if thread not in self._threads:
                    return
            # An adapter's size: not to be kept while there is nothing to do.
            del future, task


def failure_of(future: Future[Any]) -> BaseException | None:
    """What a task that has ended raised, or None; an `Unavailable`, `worker_draining`, for one that was never begun."""
    if future.cancelled():
        return Unavailable("This worker is shutting down.", code="worker_draining", remedy="Use another worker.")
    return future.exception()


_all_loaders: weakref.WeakSet[LoaderThreads[Any]] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    loaders = tuple(_all_loaders)
    for loader in loaders:
        loader.shutdown()
    # One deadline for all: most have nothing to end, and their shares would be lost to the one that has.
    deadline = time.monotonic() + _EXIT_SECONDS
    for loader in loaders:
        loader.join(timeout_seconds=max(0.0, deadline - time.monotonic()))


def _give_way() -> None:
    """Lower the calling thread's priority, where that is possible for one thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            # More than the process has: as root, a fixed number would speed the thread up where the process is nicer.
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
