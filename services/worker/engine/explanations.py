"""Requests whose answer is complete and of which it is still to be told which components acted.

They are read again one after another, a chunk between two steps, so that those that are still being answered go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from services.worker.engine.execution.gating_pass import GatingPass
from services.worker.engine.execution.runner import GatingPassMaker
from services.worker.engine.output.events import Finished
from services.worker.engine.request_lifecycle import RequestLifecycle
from services.worker.engine.scheduling.request import ActiveRequest, RequestState


class Explanations:
    """The queue of such requests. For the engine's thread.

    Args:
        make_pass: starts a request's second reading; None: the model cannot be read again so, and `add` is never
            called.
        requests: ends them.
        max_chunk_tokens: tokens that are read between two steps.
    """

    def __init__(self, make_pass: GatingPassMaker | None, requests: RequestLifecycle, *, max_chunk_tokens: int) -> None:
        self._make_pass = make_pass
        self._requests = requests
        self._max_chunk_tokens = max_chunk_tokens
        self._queue: deque[tuple[ActiveRequest, Finished]] = deque()
        self._current: GatingPass | None = None

    def __len__(self) -> int:
        return sum(1 for _ in self.requests())

    def requests(self) -> Iterator[ActiveRequest]:
        """Those that have not ended meanwhile."""
        return (active for active, _ in self._queue if active.state is RequestState.EXPLAINING)

    def add(self, active: ActiveRequest, finished: Finished) -> None:
        """Explain a request whose ROCs are still there.

        Args:
            active: the request, EXPLAINING.
            finished: its end, as it will be told with the explanation.
        """
        self._queue.append((active, finished))

    def advance(self) -> bool:
        """Read one chunk, and end the request if that was the last; False if there was nothing to do. Whatever goes
        wrong ends that request alone."""
        while self._queue and self._queue[0][0].state is not RequestState.EXPLAINING:
            # Aborted, or failed with all others.
            self._drop_first()
        if not self._queue:
            return False
        active, finished = self._queue[0]
        try:
            told = self._next_chunk(active, finished)
        except Exception as error:  # whatever the model, a kernel or the allocator raises
            self._drop_first()
            self._requests.fail(active, error)
            return True
        if told is not None:
            self._drop_first()
            self._requests.end(active, told)
        return True

    def _next_chunk(self, active: ActiveRequest, finished: Finished) -> Finished | None:
        if self._current is None:
            assert self._make_pass is not None, "nobody checked whether the model can be explained"
            self._current = self._make_pass(
                # No step reads the last token.
                active.tokens_between(0, active.num_tokens - 1),
                num_prompt_tokens=active.num_prompt_tokens,
                num_read_tokens=active.num_read_tokens,
                plan=active.request.plan,
            )
        self._current.advance(self._max_chunk_tokens)
        if not self._current.is_done:
            return None
        return replace(finished, gating=self._current.result(), num_gated_tokens=self._current.num_tokens)

    def _drop_first(self) -> None:
        self._queue.popleft()
        self._current = None
