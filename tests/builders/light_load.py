"""Light load on a served system: a few clients that ask again and again, and what became of each request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

PROMPT = "reverse the letters and write them backwards : a f c d ="
ANSWER = "d c f a"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request."""

    began: float
    seconds: float
    status: int
    """0 if there was no answer at all."""
    text: str
    """The answer, or what is known of the failure."""

    @property
    def is_ok(self) -> bool:
        """Whether it got the one right answer."""
        return self.status == 200 and self.text == ANSWER


@dataclass(slots=True)
class Load:
    """What the clients saw so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    def failed(self, *, since: float = 0.0, until: float = float("inf")) -> list[Outcome]:
        """Requests begun in that time (by `time.monotonic`) that did not get the right answer."""
        return [o for o in list(self.outcomes) if since <= o.began < until and not o.is_ok]

    def num_ok(self, *, since: float = 0.0) -> int:
        """Requests begun since then that did."""
        return sum(o.is_ok for o in list(self.outcomes) if o.began >= since)

    def await_ok(self, number: int, *, since: float, seconds: float = 60.0) -> None:
        """Return once so many requests begun since then were answered rightly.

        Raises:
            AssertionError: it takes too long; with the last outcomes.
        """
        deadline = time.monotonic() + seconds
        while self.num_ok(since=since) < number:
            assert time.monotonic() < deadline, self.outcomes[-5:]
            time.sleep(0.1)


def ask(client: httpx.Client, *, prompt: str = PROMPT, model: str = "auto") -> Outcome:
    """One completion of the shipped testbed."""
    began = time.monotonic()
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
    try:
        answer = client.post("/v1/completions", json=body)
        text = answer.json()["choices"][0]["text"].strip() if answer.status_code == 200 else answer.text[:500]
        return Outcome(began, time.monotonic() - began, answer.status_code, text)
    except httpx.HTTPError as error:
        return Outcome(began, time.monotonic() - began, 0, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def light_load(url: str, *, num_clients: int = 3, pause_seconds: float = 0.2) -> Iterator[Load]:
    """Clients that ask until the block ends.

    Args:
        url: of the router or what stands before it.
        num_clients: each waits for its answer and for the pause.
        pause_seconds: between an answer and the next question.
    """
    load = Load()
    ended = threading.Event()

    def run() -> None:
        with httpx.Client(base_url=url, timeout=60.0) as client:
            while not ended.is_set():
                load.outcomes.append(ask(client))
                ended.wait(pause_seconds)

    clients = [threading.Thread(target=run, daemon=True) for _ in range(num_clients)]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        ended.set()
        for client in clients:
            client.join(timeout=70)
