"""One end for each request, whoever tells it."""

from __future__ import annotations

import threading

import pytest

from hilora.errors import GenerationFailed
from services.worker.engine.output.event_stream import EventStream
from services.worker.engine.output.events import Failed, Started, TextDelta
from tests.builders.engine import Recorder

_DELTA = TextDelta(text="x", token_ids=(5,))


def test_nothing_follows_the_end() -> None:
    recorder = Recorder()
    stream = EventStream(recorder)
    end = Failed(error=GenerationFailed("first"))
    assert stream.tell(Started(num_prompt_tokens=1)) and stream.tell(end)
    assert not stream.tell(_DELTA)
    assert not stream.tell(Failed(error=GenerationFailed("second")))
    assert recorder.events == [Started(num_prompt_tokens=1), end]
    assert stream.terminal is end


def test_a_sink_that_refuses_an_end_is_not_told_another() -> None:
    def sink(event):
        raise ConnectionError("gone")

    stream = EventStream(sink)
    with pytest.raises(ConnectionError):
        stream.tell(Failed(error=GenerationFailed("first")))
    assert not stream.tell(Failed(error=GenerationFailed("second")))


def test_threads_that_end_it_at_once_end_it_once() -> None:
    recorder = Recorder()
    stream = EventStream(recorder)
    barrier = threading.Barrier(8)

    def end(number: int) -> None:
        barrier.wait()
        for _ in range(50):
            stream.tell(_DELTA)
        stream.tell(Failed(error=GenerationFailed(str(number))))

    threads = [threading.Thread(target=end, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.num_terminal == 1
    assert isinstance(recorder.events[-1], Failed)
