"""What becomes of an exception: what its request's caller is told, and what it may keep in memory."""

from __future__ import annotations

from collections.abc import Iterator

from hilora.errors import GenerationFailed, HiloraError


def as_failure(error: BaseException) -> HiloraError:
    """What a caller is told of an exception: itself if it is one of ours, and else no more than its kind."""
    if isinstance(error, HiloraError):
        return error
    return GenerationFailed(
        f"The engine could not finish this request: {type(error).__name__}.",
        remedy="Other requests were not affected; send it again, and see the worker's log if it fails again.",
    )


def linked_errors(error: BaseException) -> Iterator[BaseException]:
    """An exception and all those that it came from, each once: they may name one another in a circle."""
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        link = found.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        found += (link.__context__, link.__cause__)


def forget_frames(error: BaseException) -> None:
    """An error goes to its caller, who may keep it; the frames that it was raised in hold the whole step's tensors."""
    for link in linked_errors(error):
        link.__traceback__ = None
