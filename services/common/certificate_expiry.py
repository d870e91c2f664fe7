"""When a certificate ends, read from its DER form (X.690) by the layout of RFC 5280, section 4.1.

Python's `ssl` tells it of a peer's certificate only, and a service needs no library of X.509 for one date.
"""

from __future__ import annotations

import datetime as dt
import ssl

_FIRST_CERTIFICATE_END = b"-----END CERTIFICATE-----"
_FIRST_CERTIFICATE_BEGIN = b"-----BEGIN CERTIFICATE-----"

_SEQUENCE = 0x30
_VERSION = 0xA0
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_LONG_LENGTH = 0x80
_FIELDS_BEFORE_VALIDITY = 3
"""Serial number, signature algorithm, issuer."""


def expires_at(pem: bytes) -> float:
    """Unix seconds at which the first certificate of a PEM file ends.

    Raises:
        ValueError: there is no certificate in it.
    """
    begin, end = pem.find(_FIRST_CERTIFICATE_BEGIN), pem.find(_FIRST_CERTIFICATE_END)
    if begin < 0 or end < begin:
        raise ValueError("no PEM certificate")
    der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_FIRST_CERTIFICATE_END)].decode("ascii"))
    try:
        return _not_after(der)
    except IndexError as error:
        raise ValueError("the certificate is cut short") from error


def _not_after(der: bytes) -> float:
    certificate = _content(der, 0, tag=_SEQUENCE)
    fields = _content(certificate, 0, tag=_SEQUENCE)
    position = _after(fields, 0) if fields[0] == _VERSION else 0
    for _ in range(_FIELDS_BEFORE_VALIDITY):
        position = _after(fields, position)
    validity = _content(fields, position, tag=_SEQUENCE)
    end = _after(validity, 0)
    text = _content(validity, end, tag=validity[end]).decode("ascii")
    if validity[end] == _UTC_TIME:
        # Two digits of a year: RFC 5280, section 4.1.2.5.1.
        text = f"{'19' if int(text[:2]) >= 50 else '20'}{text}"
    elif validity[end] != _GENERALIZED_TIME:
        raise ValueError("the certificate's end is no time")
    return dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC).timestamp()


def _content(data: bytes, position: int, *, tag: int) -> bytes:
    if data[position] != tag:
        raise ValueError(f"tag {data[position]:#x} where {tag:#x} was expected")
    start, length = _extent(data, position)
    return data[start : start + length]


def _after(data: bytes, position: int) -> int:
    start, length = _extent(data, position)
    return start + length


def _extent(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of an element begins, and its length."""
    first = data[position + 1]
    if first < _LONG_LENGTH:
        return position + 2, first
    num_bytes = first - _LONG_LENGTH
    start = position + 2 + num_bytes
    return start, int.from_bytes(data[position + 2 : start], "big")
