"""HTTP/1.1 parsed in C, with a cap on the head of a request, which the parser itself has not.

A head is the request line and the headers. Without a cap one connection could make a server keep any amount of them:
the body's cap is the application's, and the application hears of a request when its head is complete.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Most of the request line and headers together; the same as h11 is given."""


class HeadTooLarge(Exception):
    """More bytes than a request's head may have."""


class CappedHttpToolsProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools; a longer head is answered with 400 and the connection closed, as with h11."""

    _num_head_bytes = 0
    _is_in_head = False
    _has_begun = False
    """Whether a request began in the bytes that are being parsed."""
    _num_received = 0
    """Bytes that came without completing the head."""

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._has_begun = False
        super().data_received(data)
        # The parser tells of a header when it ends. Where a head began in this very piece, a body may come before it.
        if self._is_in_head and not self._has_begun and not self.transport.is_closing():
            self._num_received += len(data)
            if self._num_received > MAX_HEAD_BYTES:
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._num_head_bytes = self._num_received = 0
        self._is_in_head = self._has_begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._is_in_head = False
        super().on_headers_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge  # the parser makes an invalid request of it
