"""A small Internet: names have public addresses, and behind each address stands a server of the test's own.

Everything is real but the wires: the code under test resolves, checks, dials and speaks HTTP over a socket.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.registry.infra.pinned_http import HttpAccess

Script = Callable[[BaseHTTPRequestHandler], None]
"""What a page does with a request."""


@dataclass
class Internet:
    """Names, addresses, pages, and what was asked for."""

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    """Answers of the DNS by name, one after the other; the last one stays."""
    pages: dict[str, Script] = field(default_factory=dict)
    """By `host/path`."""
    dialled: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """`host/path?query` of every request."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    doors: dict[int, int] = field(default_factory=dict)
    """Real port by the port that is dialled."""
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def access(self) -> HttpAccess:
        """How the code under test gets there."""
        return HttpAccess(resolve=self._resolve, dial=self._dial, tls=self.tls)

    def _resolve(self, host: str, _: int) -> list[str]:
        answers = self.names.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _dial(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.dialled.append(address[0])
        return socket.create_connection(("127.0.0.1", self.doors[address[1]]), timeout)


def answer(body: bytes, *, status: int = 200, **headers: str) -> Script:
    """A page with a body; `Content_Length="none"` leaves the length out."""

    def script(request: BaseHTTPRequestHandler) -> None:
        fields = {"Content_Length": str(len(body)), **headers}
        request.send_response(status)
        for name, value in fields.items():
            if value != "none":
                request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = True

    return script


def redirect(location: str, *, status: int = 302) -> Script:
    """A page that leads elsewhere."""
    return answer(b"", status=status, Location=location)


@contextmanager
def internet(folder: Path, *, tls_names: tuple[str, ...] = ("files.example",)) -> Generator[Internet]:
    """An Internet for the time of a block: port 80 plain, port 443 with a certificate for some names."""
    net = Internet()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = f"{self.headers['Host']}{self.path}"
            net.requests.append(place)
            net.headers.append(dict(self.headers.items()))
            script = net.pages.get(place.partition("?")[0], answer(b"", status=404))
            try:
                script(self)
            except OSError:
                self.close_connection = True  # the client had enough

        def log_message(self, *_: Any) -> None:
            return

    certificate = _certificate(folder, tls_names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    net.tls = ssl.create_default_context(cafile=str(certificate))
    servers = {80: _Quiet(("127.0.0.1", 0), Handler), 443: _Quiet(("127.0.0.1", 0), Handler)}
    servers[443].socket = context.wrap_socket(servers[443].socket, server_side=True, do_handshake_on_connect=False)
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        for server in servers.values()
    ]
    net.doors = {port: int(server.server_address[1]) for port, server in servers.items()}
    for thread in threads:
        thread.start()
    try:
        yield net
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of the tests."""


def _certificate(folder: Path, names: tuple[str, ...]) -> Path:
    """A certificate that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
