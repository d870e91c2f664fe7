"""The sentence encoder behind an async door: texts that wait together are embedded together, in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hilora.errors import Unavailable
from services.common.sequence_encoder import SequenceEncoder

_Waiting = tuple[str, "asyncio.Future[NDArray[np.float32]]"]


class BatchingEmbedder:
    """Embeds texts with dynamic batching: while one batch runs, the next one gathers. Nothing waits on purpose.

    Args:
        load: builds the encoder; blocks for seconds, so it runs in a thread of its own.
        max_batch: most texts of one pass.
    """

    def __init__(self, load: Callable[[], SequenceEncoder], *, max_batch: int = 32) -> None:
        self._load = load
        self._max_batch = max_batch
        self._encoder: SequenceEncoder | None = None
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
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
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        self._encoder = None
        while not self._queue.empty():
            _, future = self._queue.get_nowait()
            if not future.done():
                future.set_exception(_not_loaded())
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def embed(self, text: str) -> NDArray[np.float32]:
        """See `TextEmbedder.embed`."""
        if self._encoder is None:
            raise _not_loaded()
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((text, future))
        return await future

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """See `TextEmbedder.count_tokens`."""
        encoder = self._encoder
        if encoder is None:
            raise _not_loaded()
        return await asyncio.get_running_loop().run_in_executor(self._executor, encoder.count_tokens, texts)

    async def _work(self, encoder: SequenceEncoder) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # A client that left while its text waited costs no work.
            batch = [(text, future) for text, future in batch if not future.done()]
            if not batch:
                continue
            try:
                embeddings = await loop.run_in_executor(self._executor, encoder.encode, [text for text, _ in batch])
            except asyncio.CancelledError:
                _fail(batch, _not_loaded())
                raise
            except Exception as error:  # the encoder is third-party code; its failure belongs to these requests alone
                _fail(batch, error)
                continue
            for (_, future), embedding in zip(batch, embeddings, strict=True):
                if not future.done():
                    future.set_result(embedding)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


def _not_loaded() -> Unavailable:
    return Unavailable(
        "The sentence encoder is not loaded.",
        code="encoder_loading",
        remedy="Wait until GET /readyz answers 200.",
    )
