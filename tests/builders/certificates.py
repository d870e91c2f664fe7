"""Authorities and certificates of one's own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common.tls import TlsFiles

_DAY = dt.timedelta(days=1)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Authority:
    """Signs certificates."""

    common_name: str = "authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._signed(
            self.common_name, self.key.public_key(), days=2, extension=x509.BasicConstraints(ca=True, path_length=None)
        )

    def write(
        self, folder: Path, name: str, *, also: Sequence[str] = (), days: float = 1, begins_in_days: float = -3
    ) -> TlsFiles:
        """A certificate for names with its key, and this authority's own, in a folder that is made if need be."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(one) for one in (name, *also)])
        certificate = self._signed(name, key.public_key(), days=days, extension=names, begins_in_days=begins_in_days)
        folder.mkdir(parents=True, exist_ok=True)
        files = TlsFiles(certificate=folder / "tls.crt", key=folder / "tls.key", authorities=folder / "ca.crt")
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        files.authorities.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def _signed(
        self,
        name: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        days: float,
        extension: x509.ExtensionType,
        begins_in_days: float = -3,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.common_name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins_in_days * _DAY)
            .not_valid_after(now + days * _DAY)
            .add_extension(extension, critical=False)
            .sign(self.key, hashes.SHA256())
        )
