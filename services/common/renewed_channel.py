"""A gRPC channel that is replaced when the certificate behind it is.

Stubs keep the callables they were made with. So this channel's callables look for the channel of the moment at each
call; calls that run stay on the channel they began on, which is closed some time later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from services.common.tls import TlsBundle, TlsIdentity

_CLOSED_AFTER_SECONDS = 3600.0
"""How long calls may go on over a channel with an older certificate."""


class RenewedChannel:
    """Looks like a `grpc.aio.Channel` to stubs and to those who close it.

    Args:
        identity: the certificate.
        open_channel: opens a channel with given credentials.
    """

    def __init__(
        self, identity: TlsIdentity, open_channel: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]
    ) -> None:
        self._identity = identity
        self._open_channel = open_channel
        self._bundle: TlsBundle | None = None
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for a method with one answer."""
        return self._callable("unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for a method with many answers."""
        return self._callable("unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for a method with many questions."""
        return self._callable("stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for a method with many questions and answers."""
        return self._callable("stream_stream", method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Let go of every channel."""
        for task in self._closing:
            task.cancel()
        if self._closing:
            await asyncio.wait(self._closing)
        if self._channel is not None:
            await self._channel.close(grace)
            self._channel = None

    def _callable(self, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*call_args: Any, **call_kwargs: Any) -> Any:
            nonlocal made
            channel = self._current()
            if made is None or made[0] is not channel:
                made = (channel, getattr(channel, kind)(method, *args, **kwargs))
            return made[1](*call_args, **call_kwargs)

        return call

    def _current(self) -> grpc.aio.Channel:
        bundle = self._identity.current()
        if self._channel is None or bundle is not self._bundle:
            if self._channel is not None:
                closing = asyncio.create_task(_close_later(self._channel), name="close-channel")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._bundle = bundle
            self._channel = self._open_channel(self._identity.channel_credentials())
        return self._channel


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(_CLOSED_AFTER_SECONDS)
    finally:
        await channel.close()
