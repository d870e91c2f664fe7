"""The settings of mutual TLS, the same for every service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.common.settings_base import ServiceSettings
from services.common.tls import TlsFiles, TlsIdentity


class TlsServiceSettings(ServiceSettings):
    """Base of the settings of a service that speaks gRPC with others."""

    tls_cert_file: Path | None = None
    """The service's certificate, in PEM: then both ends of every gRPC call show one, and calls without are refused.
    Read again when it changes."""
    tls_key_file: Path | None = None
    """The certificate's private key."""
    tls_ca_file: Path | None = None
    """Certificates of the authorities that sign the services' certificates."""
    tls_server_name: str | None = None
    """Name in the certificates of the services that this one calls; by default the host that is called."""
    tls_client_names: tuple[str, ...] = ()
    """Names (a JSON list) in the certificates of those who may call; by default any that an authority signed."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """Another gRPC port, without TLS, that answers health checks and nothing else, for probes that have no
    certificate."""

    @model_validator(mode="after")
    def _all_files_or_none(self) -> Self:
        given = [file is not None for file in (self.tls_cert_file, self.tls_key_file, self.tls_ca_file)]
        if any(given) and not all(given):
            raise ValueError("tls_cert_file, tls_key_file and tls_ca_file belong together: set all of them, or none")
        return self

    def tls_identity(self) -> TlsIdentity | None:
        """Who the service is to the others; None without TLS.

        Raises:
            InvalidInput: `invalid_certificate`.
        """
        if self.tls_cert_file is None or self.tls_key_file is None or self.tls_ca_file is None:
            return None
        return TlsIdentity(
            TlsFiles(certificate=self.tls_cert_file, key=self.tls_key_file, authorities=self.tls_ca_file),
            server_name=self.tls_server_name,
            client_names=self.tls_client_names,
        )
