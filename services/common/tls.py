"""Who a service is to the others: a certificate that both ends of every call show (mutual TLS).

Certificates are short-lived and are replaced while services run. A server takes its files anew at each handshake; a
client opens another channel once they changed (`rpc_client`).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from hilora.errors import InvalidInput
from services.common import certificate_expiry
from services.common.watched_file import WatchedFile


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where a service's certificate lies, in PEM."""

    certificate: Path
    """Its own, with the intermediate ones after it."""
    key: Path
    """The private key of the first."""
    authorities: Path
    """Who may have signed the certificates of the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsBundle:
    """What the files held at one moment; a new object whenever they change."""

    certificate: bytes
    key: bytes
    authorities: bytes


class TlsIdentity:
    """A service's certificate, kept current.

    Args:
        files: where it lies.
        server_name: name in the certificates of the services that this one calls; by default the host that is called.
        client_names: names in the certificates of those who may call; by default any that an authority signed.

    Raises:
        InvalidInput: `invalid_certificate`, if the files are no certificate with its key and authorities.
    """

    def __init__(self, files: TlsFiles, *, server_name: str | None = None, client_names: Sequence[str] = ()) -> None:
        self.server_name = server_name
        self.client_names = frozenset(client_names)
        self._file = WatchedFile(files.certificate, lambda _: _read(files), beside=(files.key, files.authorities))

    def current(self) -> TlsBundle:
        """What the files hold now; if they hold nothing that can be used, what they held before."""
        return self._file.current()

    def expires_at(self) -> float:
        """Unix seconds at which the certificate of now ends."""
        return certificate_expiry.expires_at(self.current().certificate)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that refuses whoever shows no certificate of an authority."""
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(), self._server_configuration, require_client_authentication=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel, with the certificate of now."""
        bundle = self.current()
        return grpc.ssl_channel_credentials(
            root_certificates=bundle.authorities, private_key=bundle.key, certificate_chain=bundle.certificate
        )

    def admits(self, names: Sequence[str]) -> bool:
        """Whether a client may call.

        Args:
            names: those in its certificate.
        """
        return not self.client_names or not self.client_names.isdisjoint(names)

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        bundle = self.current()
        return grpc.ssl_server_certificate_configuration(
            [(bundle.key, bundle.certificate)], root_certificates=bundle.authorities
        )


def _read(files: TlsFiles) -> TlsBundle:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Whoever replaces files one after the other leaves a certificate beside another one's key for a moment.
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authorities)
        return TlsBundle(
            certificate=files.certificate.read_bytes(),
            key=files.key.read_bytes(),
            authorities=files.authorities.read_bytes(),
        )
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"The certificate {files.certificate} cannot be used with its key and authorities: {error}.",
            code="invalid_certificate",
            remedy="Give PEM files: a certificate, its own key, and the certificates of the authorities.",
            place=str(files.certificate),
        ) from error
