"""One HTTP request to one address: the name is used for TLS and for the Host header, and never looked up again.

Written on `http.client`: it follows no redirect, honours no proxy variable, keeps no connection, and lets us dial.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from services.registry.infra.url_guard import CheckedUrl

Dial = Callable[[tuple[str, int], float], socket.socket]
"""Connects to `(address, port)` within so many seconds. Raises OSError."""

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host. Raises OSError."""

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0


def resolve_by_dns(host: str, port: int) -> list[str]:
    """Every address that the system's resolver knows, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpAccess:
    """How the network is reached; replaced where there is none."""

    resolve: Resolve = resolve_by_dns
    dial: Dial = socket.create_connection
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)


class _PinnedConnection(http.client.HTTPConnection):
    """A connection that is dialled by address."""

    def __init__(self, url: CheckedUrl, addresses: Sequence[str], access: HttpAccess) -> None:
        super().__init__(url.host, url.port, timeout=_READ_SECONDS)
        self.default_port = 443 if url.scheme == "https" else 80
        self._url = url
        self._addresses = addresses
        self._access = access
        # Ours beside `self.sock`, which http.client forgets as soon as the answer is the last one.
        self._socket: socket.socket | None = None
        self._is_cut = False

    def connect(self) -> None:
        self._socket = self._dial()
        self._socket.settimeout(_READ_SECONDS)
        if self._url.scheme == "https":
            # The handshake comes afterwards, so that it can be cut, too.
            secured = self._access.tls.wrap_socket(
                self._socket, server_hostname=self._url.host, do_handshake_on_connect=False
            )
            self._socket = secured
            if not self._is_cut:
                secured.do_handshake()
        self.sock = self._socket
        if self._is_cut:
            raise TimeoutError("the time for the request is up")

    def _dial(self) -> socket.socket:
        failure: OSError | None = None
        for address in self._addresses:
            try:
                return self._access.dial((address, self._url.port), _CONNECT_SECONDS)
            except OSError as error:
                failure = error
        raise failure or OSError("the host has no address")

    def cut(self) -> None:
        """End the connection from another thread: whoever waits for its next byte wakes up."""
        self._is_cut = True
        if self._socket is not None:
            with suppress(OSError):  # the other end was faster
                # Of the plain socket: TLS's own would wait for the reader that is to be woken.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        if self._socket is not None:
            self._socket.close()


@contextmanager
def pinned_get(
    url: CheckedUrl, addresses: Sequence[str], *, access: HttpAccess, max_seconds: float
) -> Generator[http.client.HTTPResponse]:
    """The answer to a GET, its body unread.

    Args:
        url: what to ask for.
        addresses: where to connect, the first that answers; the caller has checked them.
        access: how the network is reached.
        max_seconds: after this long the connection is cut, whatever it is doing: a server that sends a byte now and
            then, or a header without an end, never runs into a time limit of single reads.

    Raises:
        OSError: the host does not answer (TLS failures and time limits included).
        http.client.HTTPException: it answers with something that is not HTTP.
    """
    connection = _PinnedConnection(url, addresses, access)
    timer = threading.Timer(max(0.0, max_seconds), connection.cut)
    timer.daemon = True
    timer.start()
    try:
        connection.request(
            "GET", url.target, headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "hilora-registry"}
        )
        with connection.getresponse() as answer:
            yield answer
    finally:
        timer.cancel()
        connection.close()
