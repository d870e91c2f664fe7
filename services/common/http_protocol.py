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
    _is_in_head = True
    _num_received = 0
    """Bytes that came without completing the head."""
    _num_heads = 0
    """Heads that were completed on this connection."""

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        # A request that comes with its body at once begins and ends between two heads: its bytes are no head's.
        is_same_head = was_in_head and self._is_in_head and self._num_heads == num_heads
        if is_same_head and not self.transport.is_closing():
            # The parser says nothing of a header before it ends.
            self._num_received += len(data)
            if self._num_received > MAX_HEAD_BYTES:
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._num_head_bytes = self._num_received = 0
        self._is_in_head = True
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
        self._num_heads += 1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is complete: what comes next is another head."""
        self._is_in_head, self._num_received = True, 0
        super().on_message_complete()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge  # the parser makes an invalid request of it
