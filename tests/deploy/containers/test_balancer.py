"""The balancer of deploy/compose/haproxy.cfg in front of servers that close connections in the middle of requests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.builders.deploy_tools import ROOT
from tests.builders.ports import free_port

NUM_REQUESTS = 300
CLOSES_EACH = 7


class _Closing(BaseHTTPRequestHandler):
    """Answers, but ends every seventh request without a word: before its body, or after it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        with server.lock:
            server.num_seen += 1
            closes = server.num_seen % CLOSES_EACH == 0
        if server.reads_first or not closes:
            self.rfile.read(int(self.headers["Content-Length"]))
        if closes:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format, *args):  # noqa: A002  (the base class's name)
        del format, args


@contextlib.contextmanager
def closing_server(*, reads_first):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Closing)
    server.lock, server.num_seen, server.reads_first = threading.Lock(), 0, reads_first
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def balancer(podman, tmp_path):
    """The shipped configuration with two servers by name instead of those that the containers' resolver finds."""
    port = free_port()
    text = (ROOT / "deploy/compose/haproxy.cfg").read_text()
    settings, servers = text.split("\nresolvers containers")[0], text.split("\nbackend routers\n")[1]
    assert "server-template" in servers
    assert "    bind :8000\n" in text
    name = "hilora-balancer"
    with closing_server(reads_first=True) as first, closing_server(reads_first=False) as second:
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(
            f"{settings}\nfrontend http\n    bind 127.0.0.1:{port}\n    default_backend routers\n"
            "backend routers\n    balance leastconn\n"
            + "".join(f"    server s{s.server_port} 127.0.0.1:{s.server_port}\n" for s in (first, second))
        )
        configuration.chmod(0o644)
        place = "/usr/local/etc/haproxy/haproxy.cfg"
        podman(
            "run", "-d", "--pull=never", "--name", name, "--network", "host", "-v", f"{configuration}:{place}:ro",
            "docker.io/library/haproxy:3.0", "haproxy", "-W", "-db", "-f", place,
        )  # fmt: skip
        try:
            _await_listening(port)
            yield f"http://127.0.0.1:{port}", (first, second)
        finally:
            podman("rm", "-f", name, check=False)


def test_a_request_whose_connection_is_closed_is_answered_by_another_server(balancer):
    url, servers = balancer
    with httpx.Client(base_url=url) as client:
        # httpx sends head and body in packets of their own, as many clients do.
        statuses = [client.post("/v1/completions", json={"prompt": "a b"}).status_code for _ in range(NUM_REQUESTS)]

    assert statuses == [200] * NUM_REQUESTS
    # The servers did close: each request that met that came again.
    num_closed = sum(server.num_seen // CLOSES_EACH for server in servers)
    assert all(server.num_seen >= CLOSES_EACH for server in servers)
    assert sum(server.num_seen for server in servers) == NUM_REQUESTS + num_closed


def _await_listening(port):
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, "the balancer does not listen"
        time.sleep(0.1)
