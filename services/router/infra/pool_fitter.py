"""Keeps a fitted router in step with the catalogue: what is new is placed at once, the fit follows in the background.

A pool of some hundred adapters is fitted faster than anybody asks. Thousands take seconds, during which an adapter that
arrives must not wait, and requests must not notice. So a large pool's fit is first extended by what came since, which
is a matter of milliseconds; a thread fits the whole pool anew meanwhile and rests for several times as long as it
worked.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from threadpoolctl import ThreadpoolController

from hilora.adapter_review import are_uneven
from hilora.gaussian_index import IndexBuilder
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from services.common.log import get_logger
from services.common.tasks import end_tasks

_log = get_logger(__name__)

_EXTENDED_FROM = 512
"""Adapters from which a pool is extended before it is fitted."""
_MAX_NEWCOMERS = 1024
"""More are not worth placing one by one: every search would score them all."""
_GATHER_SECONDS = 2.0
"""Adapters often arrive in a row; a background fit that began with the first would miss the others."""
_MAX_GATHERINGS = 8
"""A row without an end is fitted all the same."""
_NICENESS = 10
_SWITCH_SECONDS = 0.0002
"""After how long a thread that runs Python lets another one run; the default is 5 ms.

A decision waits for the interpreter several times. Beside a fit of ten thousand adapters its 99th percentile was 7.5 ms
with 1 ms and 5.9 ms with this, and the fit took no longer.
"""
_REST = 4.0
_MAX_REST_SECONDS = 60.0
"""Pause after a background fit: in times of its duration, and at most."""


class PoolFitter:
    """Fits pools in a thread of its own. Used from one event loop; `current` is called by one task at a time.

    Args:
        build_index: makes what is searched.
        on_fitted: called in the loop when a background fit is done: the next `current` uses it.
    """

    def __init__(self, *, build_index: IndexBuilder, on_fitted: Callable[[], None]) -> None:
        self._build_index = build_index
        self._on_fitted = on_fitted
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pool-fit", initializer=_step_back)
        self._base: SequenceRouter | None = None
        self._fitted: dict[str, AdapterProfile] = {}
        self._wanted: tuple[list[AdapterProfile], int] = ([], 0)
        self._background: asyncio.Task[None] | None = None
        self._rests_until = 0.0
        self._is_settled = False
        self.last_fit_seconds = 0.0
        """How long the last fit took; 0 before the first."""

    async def current(self, profiles: Sequence[AdapterProfile], *, catalog_generation: int) -> SequenceRouter:
        """A router that knows these adapters. It may also know others that are gone: see `adapter_names` of it.

        Raises:
            ValueError: see `SequenceRouter`; the last fit stays in use.
        """
        self._wanted = (list(profiles), catalog_generation)
        # Taken together: a background fit may replace both while a thread compares.
        base, fitted = self._base, self._fitted
        newcomers = await asyncio.to_thread(_newcomers, profiles, fitted)
        if base is None or len(fitted) < _EXTENDED_FROM or len(newcomers) > _MAX_NEWCOMERS:
            await self._stop_background()
            is_first_large_one = not self._is_settled and len(profiles) >= _EXTENDED_FROM
            if is_first_large_one:
                await asyncio.to_thread(_multiply_in_one_thread)
            router = await self._fit(*self._wanted)
            if is_first_large_one:
                self._is_settled = True
                await asyncio.to_thread(_settle)
            return router
        router = await asyncio.to_thread(base.extended, newcomers, catalog_generation=catalog_generation)
        is_stale = bool(newcomers) or len(profiles) != len(fitted)
        if is_stale and (self._background is None or self._background.done()):
            self._background = asyncio.create_task(self._fit_in_background(), name="catalog-refit")
        return router

    async def stop(self) -> None:
        """End the background; a fit that has begun runs to its end unheard."""
        await self._stop_background()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _fit(self, profiles: list[AdapterProfile], catalog_generation: int) -> SequenceRouter:
        started = time.perf_counter()
        router = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._fitted_router, profiles, catalog_generation, self._base
        )
        self.last_fit_seconds = time.perf_counter() - started
        self._base = router
        self._fitted = {profile.adapter_id: profile for profile in profiles}
        index = router.index
        _log.info(
            "catalog_fitted",
            catalog_generation=catalog_generation,
            num_adapters=len(profiles),
            seconds=round(self.last_fit_seconds, 3),
            index=None if index is None else index.kind,
            recall=None if index is None else round(index.recall, 4),
            lexical_weight=_lexical_weight(router),
        )
        counts = [len(profile.samples_ME) for profile in profiles]
        if are_uneven(counts):
            _log.warning("samples_uneven", least=min(counts), most=max(counts))
        return router

    def _fitted_router(
        self, profiles: list[AdapterProfile], catalog_generation: int, base: SequenceRouter | None
    ) -> SequenceRouter:
        router = SequenceRouter(profiles, catalog_generation=catalog_generation, build_index=self._build_index)
        if base is not None:
            router.prepare_like(base)
        return router

    async def _fit_in_background(self) -> None:
        await asyncio.sleep(max(0.0, self._rests_until - time.monotonic()))
        for _ in range(_MAX_GATHERINGS):
            _, known = self._wanted
            await asyncio.sleep(_GATHER_SECONDS)
            if self._wanted[1] == known:
                break
        profiles, catalog_generation = self._wanted
        try:
            await self._fit(profiles, catalog_generation)
        except Exception:  # numerics of a strange pool must not end the following: the extended fit stays in use
            _log.exception("catalog_fit_failed", catalog_generation=catalog_generation, num_adapters=len(profiles))
            return
        finally:
            self._rests_until = time.monotonic() + min(_REST * self.last_fit_seconds, _MAX_REST_SECONDS)
        self._background = None
        self._on_fitted()

    async def _stop_background(self) -> None:
        if self._background is not None:
            await end_tasks(self._background)
            self._background = None


def _lexical_weight(router: SequenceRouter) -> float:
    """What the wording of samples counts; 0 where it tells nothing."""
    stack = None if router.pool is None else router.pool.stack
    return 0.0 if stack is None else round(stack.weights.lexical_weight, 3)


def _newcomers(profiles: Sequence[AdapterProfile], fitted: Mapping[str, AdapterProfile]) -> list[AdapterProfile]:
    # Nearly all are the very objects of the fit, and the interpreter is not shared while this looks for the others.
    others = [profile for profile in profiles if fitted.get(profile.adapter_id) is not profile]
    return [profile for profile in others if not is_same_profile(profile, fitted.get(profile.adapter_id))]


def is_same_profile(profile: AdapterProfile | None, known: AdapterProfile | None) -> bool:
    """Whether what was fitted to one profile holds for the other; a new snapshot brings equal ones as new objects."""
    if profile is None or known is None or profile.lora_rank != known.lora_rank:
        return False
    # Equal embeddings come from equal texts; but a registry that was renewed may know grams that it did not know.
    if (profile.grams is None) != (known.grams is None):
        return False
    return np.array_equal(profile.samples_ME, known.samples_ME)


def _step_back() -> None:
    """Let requests go first where this thread and theirs want the same processor. Of this thread alone, under Linux."""
    with suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _multiply_in_one_thread() -> None:
    """Keep OpenBLAS from sharing a product among its threads.

    It runs one product at a time on them: the small one of a request would wait behind the large one of a fit, for half
    a second with ten thousand adapters. A fit gains nothing from them either: it multiplies what fits the cache, and
    threads that wait for one another where another program runs take ten times as long.
    """
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def _settle() -> None:
    """What makes later fits unnoticed, once requests come.

    A fit that runs Python lets go of the interpreter sooner. The collector need not look through the catalogue again
    either: what is replaced in it goes by its reference count.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
