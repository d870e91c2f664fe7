"""A port that is ours before the server that will listen on it exists."""

from __future__ import annotations

import socket

_HOST = "127.0.0.1"


class PortReservation:
    """Keeps a free port of the loopback address from everybody who asks for any free one.

    The socket is bound but does not listen, and both it and the server's allow reuse of the address: so the server may
    bind the same port while the reservation is still held.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, 0))
        self.port = int(self._socket.getsockname()[1])

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{_HOST}:{self.port}"

    def release(self) -> None:
        """Let go of the port; a server that listens on it keeps it."""
        self._socket.close()
