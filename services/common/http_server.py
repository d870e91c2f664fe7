"""An ASGI application served by uvicorn as a component that starts and stops with its service."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from services.common.http_protocol import CappedHttpToolsProtocol


class _ManagedServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the process's own lifecycle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class HttpServer:
    """One listening HTTP server.

    Args:
        app: the ASGI application.
        host: address to bind.
        port: port to bind; 0 takes a free one, see `address` after `start`.
    """

    def __init__(self, *, app: Any, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._server: _ManagedServer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """`host:port`, valid after `start`."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Bind and serve. Raises OSError if the port is taken."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # asyncio switches Nagle's algorithm off only for sockets that say they are TCP; with it on, an answer of two
        # writes waits 40 ms for the client's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            http=CappedHttpToolsProtocol,
            ws="none",
        )
        self._server = _ManagedServer(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http-server")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the HTTP application refused to start")
            await asyncio.sleep(0.01)

    async def stop(self, *, grace_seconds: float) -> None:
        """Stop accepting, let responses in flight finish for at most `grace_seconds`."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        await self._task
        self._server = None
