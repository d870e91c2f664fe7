"""Channels to our own services, and their errors as our own exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import grpc

from services.common.errors import error_from_rpc
from services.common.renewed_channel import RenewedChannel
from services.common.tls import TlsIdentity

_MessageT = TypeVar("_MessageT")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Cap of one message in either direction; larger things travel in chunks."""

CHUNK_BYTES = 1024 * 1024
"""Size of one piece of a chunked file."""

_CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished without closing is noticed within half a minute, also on an idle channel.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A restarted peer is found again within seconds rather than after the default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Our services are addressed directly: a proxy for outside traffic must not get in between.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str, *, identity: TlsIdentity | None = None) -> grpc.aio.Channel:
    """A channel to `host:port`; connects lazily and reconnects by itself. The caller closes it.

    Args:
        address: of the server.
        identity: the certificate to show, and whom to believe; None speaks without TLS.
    """
    if identity is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    options = list(_CHANNEL_OPTIONS)
    if identity.server_name is not None:
        options.append(("grpc.ssl_target_name_override", identity.server_name))

    def opened(credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, credentials, options=options)

    return cast("grpc.aio.Channel", RenewedChannel(identity, opened))


@contextmanager
def translated_errors(peer: str) -> Generator[None]:
    """Raise a peer's error as the `HiloraError` it raised itself.

    Args:
        peer: who is called, for messages when the peer could say nothing: "registry at host:port".
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, peer=peer) from error


async def translated_stream(stream: AsyncIterator[_MessageT], *, peer: str) -> AsyncIterator[_MessageT]:
    """The messages of a server stream, with errors as in `translated_errors`."""
    with translated_errors(peer):
        async for message in stream:
            yield message
