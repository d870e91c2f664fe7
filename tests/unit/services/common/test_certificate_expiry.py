from __future__ import annotations

import time

import pytest
from cryptography import x509

from services.common.certificate_expiry import expires_at
from services.common.tls import TlsIdentity
from tests.builders.certificates import Authority


@pytest.mark.parametrize("days", [-1, 1, 90, 36_000])
def test_it_is_what_a_library_of_certificates_reads(tmp_path, days):
    files = Authority().write(tmp_path, "router", days=days)
    pem = files.certificate.read_bytes()
    expected = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    assert expires_at(pem) == expected
    assert expires_at(b"# a comment\n" + pem + files.authorities.read_bytes()) == expected
    assert expected == pytest.approx(time.time() + days * 86_400, abs=60)


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----END CERTIFICATE----------BEGIN CERTIFICATE-----"])
def test_what_is_no_certificate_is_refused(pem):
    with pytest.raises(ValueError, match="no PEM certificate"):
        expires_at(pem)


def test_nor_is_one_that_was_cut(tmp_path):
    lines = Authority().write(tmp_path, "router").certificate.read_bytes().splitlines(keepends=True)
    with pytest.raises(ValueError, match="cut short"):
        expires_at(b"".join([*lines[:2], lines[-1]]))


def test_a_renewed_certificate_is_seen(tmp_path, monkeypatch):
    authority = Authority()
    identity = TlsIdentity(authority.write(tmp_path, "router", days=1))
    before = identity.expires_at()
    authority.write(tmp_path, "router", days=30)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert identity.expires_at() == pytest.approx(before + 29 * 86_400, abs=60)
