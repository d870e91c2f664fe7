"""Several generations of one request at the same time: their events in one stream, or all of them as wholes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from services.common.tasks import end_tasks
from services.router.answer import CompletedGeneration, GenerationEvent
from services.router.generation import GenerateText
from services.router.request import GenerationRequest

NumberedEvent = tuple[int, GenerationEvent]
"""An event, after the place of its request."""


async def stream_all(
    generate_text: GenerateText, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[NumberedEvent]:
    """The events of all requests as they come. Closing the generator, or an error of one of them, ends them all.

    Raises:
        HiloraError: as `GenerateText.stream`, of the first that failed.
    """
    if len(requests) == 1:
        async with aclosing(generate_text.stream(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    # Without a limit: answers have one, and a request that waits for its reader would hold the others up.
    queue: asyncio.Queue[NumberedEvent | Exception | None] = asyncio.Queue()

    async def run(place: int, request: GenerationRequest) -> None:
        try:
            async with aclosing(generate_text.stream(request)) as events:
                async for event in events:
                    queue.put_nowait((place, event))
        except Exception as error:  # whoever reads the queue raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    running = [asyncio.create_task(run(place, request)) for place, request in enumerate(requests)]
    try:
        num_open = len(running)
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await end_tasks(*running)


async def complete_all(generate_text: GenerateText, requests: Sequence[GenerationRequest]) -> list[CompletedGeneration]:
    """All answers, by request. An error of one of them ends the others.

    Raises:
        HiloraError: as `GenerateText.complete`, of the first that failed.
    """
    if len(requests) == 1:
        return [await generate_text.complete(requests[0])]
    running = [asyncio.create_task(generate_text.complete(request)) for request in requests]
    try:
        return list(await asyncio.gather(*running))
    finally:
        await end_tasks(*running)
