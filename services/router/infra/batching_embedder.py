"""The sentence encoder behind an async door: a text that came lately is remembered, others are embedded in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hilora.errors import Exhausted, Unavailable
from services.common.log import get_logger
from services.common.sequence_encoder import SequenceEncoder
from services.common.tasks import end_tasks
from services.router.infra.embedding_cache import EmbeddingCache
from services.router.text_key import text_key

_Vector = NDArray[np.float32]
_log = get_logger(__name__)
_WITHOUT_ENCODER = "Send again, or name a model: that needs no encoder."


@dataclass(kw_only=True, slots=True)
class EmbedderFigures:
    """What an embedder did since it was made, and how it stands."""

    num_hits: int = 0
    """Texts whose embedding was remembered."""
    num_shared: int = 0
    """Texts that were already on their way for somebody else."""
    num_embedded: int = 0
    num_passes: int = 0
    num_refused: int = 0
    """Texts that found the queue full."""
    num_waiting: int = 0
    num_remembered: int = 0
    num_remembered_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """A text on its way, and all who wait for it."""

    key: bytes
    text: str
    futures: list[asyncio.Future[_Vector]] = field(default_factory=list["asyncio.Future[_Vector]"])

    @property
    def is_wanted(self) -> bool:
        return any(not future.done() for future in self.futures)

    def succeed(self, vector_E: _Vector) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(vector_E)

    def fail(self, error: Exception) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


class BatchingEmbedder:
    """Embeds texts with dynamic batching: while one batch runs, the next one gathers. Nothing waits on purpose.

    Equal texts that wait at the same time are embedded once. Vectors are shared between callers and read-only. A text
    that the encoder fails on costs the others of its batch nothing but a second pass.

    Args:
        load: builds the encoder; blocks for seconds, so it runs in a thread of its own.
        max_batch: most texts of one pass.
        max_waiting: most different texts that may wait; one more is refused.
        timeout_seconds: longest time that a text waits for its vector.
        cache: what is remembered; by default 4096 texts in 16 MiB.
    """

    def __init__(
        self,
        load: Callable[[], SequenceEncoder],
        *,
        max_batch: int = 32,
        max_waiting: int = 4096,
        timeout_seconds: float = 30.0,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._cache = EmbeddingCache(max_entries=4096, max_bytes=16 << 20) if cache is None else cache
        self._figures = EmbedderFigures()
        self._encoder: SequenceEncoder | None = None
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._on_the_way: dict[bytes, _Waiting] = {}
        # The encoder serves one call at a time anyway: torch's own threads use the cores.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._task: asyncio.Task[None] | None = None

    @property
    def encoder_id(self) -> str | None:
        """See `TextEmbedder.encoder_id`."""
        return self._encoder.encoder_id if self._encoder else None

    @property
    def embedding_dim(self) -> int:
        """E. Only after `start`."""
        assert self._encoder is not None, "embedding_dim is known once the encoder is loaded"
        return self._encoder.embedding_dim

    def figures(self) -> EmbedderFigures:
        """What was done until now."""
        self._figures.num_waiting = self._queue.qsize()
        self._figures.num_remembered = len(self._cache)
        self._figures.num_remembered_bytes = self._cache.num_bytes
        return self._figures

    async def start(self) -> None:
        """Load the encoder and embed one text, so that no request pays for what a first pass sets up.

        Raises:
            InvalidInput: `unknown_encoder`.
        """
        loop = asyncio.get_running_loop()
        encoder = await loop.run_in_executor(self._executor, self._load)
        await loop.run_in_executor(self._executor, encoder.encode, ["warm-up"])
        self._encoder = encoder
        self._task = asyncio.create_task(self._work(encoder), name="embedder")

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (a pass takes milliseconds)
        """End the thread. Texts that still wait are refused."""
        if self._task is not None:
            await end_tasks(self._task)
            self._task = None
        self._encoder = None
        while not self._queue.empty():
            self._queue.get_nowait().fail(_not_loaded())
        self._on_the_way.clear()
        self._cache.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def embed(self, text: str) -> _Vector:
        """See `TextEmbedder.embed`.

        Raises:
            Exhausted: `encoder_queue_full`.
            Unavailable: also `encoder_failed`, and `encoder_timeout`.
        """
        if self._encoder is None:
            raise _not_loaded()
        key = text_key(text)
        remembered_E = self._cache.get(key)
        if remembered_E is not None:
            self._figures.num_hits += 1
            return remembered_E
        waiting = self._on_the_way.get(key)
        if waiting is None:
            waiting = self._enqueue(key, text)
        else:
            self._figures.num_shared += 1
        future: asyncio.Future[_Vector] = asyncio.get_running_loop().create_future()
        waiting.futures.append(future)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await future
        except TimeoutError as error:
            raise Unavailable(
                f"The sentence encoder said nothing for {self._timeout_seconds:g} seconds.",
                code="encoder_timeout",
                remedy=_WITHOUT_ENCODER,
            ) from error

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """See `TextEmbedder.count_tokens`."""
        encoder = self._encoder
        if encoder is None:
            raise _not_loaded()
        return await asyncio.get_running_loop().run_in_executor(self._executor, encoder.count_tokens, texts)

    def _enqueue(self, key: bytes, text: str) -> _Waiting:
        if self._queue.qsize() >= self._max_waiting:
            self._figures.num_refused += 1
            raise Exhausted(
                f"{self._max_waiting} texts already wait for the sentence encoder.",
                code="encoder_queue_full",
                remedy="Send again a little later; add routers, or raise HILORA_ROUTER_ENCODER_MAX_WAITING.",
            )
        waiting = self._on_the_way[key] = _Waiting(key=key, text=text)
        self._queue.put_nowait(waiting)
        return waiting

    async def _work(self, encoder: SequenceEncoder) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # A text that everybody left while it waited costs no work.
            for waiting in batch:
                if not waiting.is_wanted:
                    self._on_the_way.pop(waiting.key, None)
            batch = [waiting for waiting in batch if waiting.is_wanted]
            if not batch:
                continue
            try:
                if not await self._embed_together(loop, encoder, batch):
                    for waiting in batch:
                        await self._embed_together(loop, encoder, [waiting])
            except asyncio.CancelledError:
                self._end(batch, _not_loaded())
                raise

    async def _embed_together(
        self, loop: asyncio.AbstractEventLoop, encoder: SequenceEncoder, batch: list[_Waiting]
    ) -> bool:
        """Give each text of a batch its vector. If the encoder fails: a text alone its error; False for several."""
        try:
            vectors_BE = await loop.run_in_executor(self._executor, encoder.encode, [one.text for one in batch])
        except Exception as error:
            if len(batch) > 1:
                return False
            _log.warning("encoder_failed", error=type(error).__name__, message=str(error)[:200])
            self._end(batch, _failed(error))
            return True
        self._figures.num_passes += 1
        self._figures.num_embedded += len(batch)
        for waiting, row_E in zip(batch, vectors_BE, strict=True):
            # A copy, or one remembered row would keep the whole batch in memory.
            vector_E = row_E.copy()
            vector_E.flags.writeable = False
            self._on_the_way.pop(waiting.key, None)
            self._cache.put(waiting.key, vector_E)
            waiting.succeed(vector_E)
        return True

    def _end(self, batch: list[_Waiting], error: Exception) -> None:
        for waiting in batch:
            self._on_the_way.pop(waiting.key, None)
            waiting.fail(error)


def _failed(error: Exception) -> Unavailable:
    return Unavailable(
        f"The sentence encoder failed: {type(error).__name__}.", code="encoder_failed", remedy=_WITHOUT_ENCODER
    )


def _not_loaded() -> Unavailable:
    return Unavailable(
        "The sentence encoder is not loaded.",
        code="encoder_loading",
        remedy="Wait until GET /readyz answers 200.",
    )
