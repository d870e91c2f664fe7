"""Decides which URLs of strangers the registry may open, and at which addresses.

A URL is taken apart by one strict pattern and nothing else: what two parsers could read in two ways (user names,
backslashes, blanks, percent signs in the host) is refused. A host has to be on the operator's list. Its addresses are
looked at after DNS, and the caller connects to exactly those that were looked at: a second answer of the DNS, given to
somebody who asks again, is never used. Every redirect starts from the beginning.

Ranges: IANA's registries of special-purpose addresses (RFC 6890 and updates).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hilora.errors import InvalidInput

MAX_URL_CHARACTERS = 2048

_PLACE = "source.url"
_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = rf"(?P<host>{_LABEL}(?:\.{_LABEL})*)\.?"
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_URL = re.compile(rf"(?P<scheme>https?)://{_HOST}{_PORT}(?P<path>/[!$%&'()*+,\-./0-9:;=@A-Z_a-z~]*)(?P<query>\?[^#]*)?")
_QUERY = re.compile(r"\?[!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]*")
_ENTRY = re.compile(rf"(?:(?P<scheme>https?)://)?{_HOST}{_PORT}")
_DEFAULT_PORTS = {"https": 443, "http": 80}

_CLOSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; clouds keep metadata here
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a public address that is Azure's inside
        "169.254.0.0/16",  # link-local, metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_OPEN_IPV6 = ipaddress.IPv6Network("2000::/3")  # global unicast: everything else is closed
_CLOSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedUrl:
    """A URL whose host the operator allows."""

    scheme: str
    host: str
    """Lower case, without a dot at its end."""
    port: int
    path: str
    query: str
    """With its question mark; may hold a signature, so it is never shown."""

    @property
    def shown(self) -> str:
        """The URL for messages and provenance."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path}"

    @property
    def full(self) -> str:
        """The URL as it is, to resolve a redirect against."""
        return f"{self.shown}{self.query}"

    @property
    def target(self) -> str:
        """What the request line asks for."""
        return f"{self.path}{self.query}"


class UrlGuard:
    """The operator's list of hosts.

    Args:
        allowed_hosts: `host`, `host:port`, each with `http://` in front where unencrypted connections are allowed.
            A host without a port is allowed at the scheme's own.

    Raises:
        InvalidInput: `invalid_setting`, if an entry is none of these.
    """

    def __init__(self, allowed_hosts: Sequence[str]) -> None:
        self._allowed = frozenset(_allowed_door(entry) for entry in allowed_hosts)

    def check(self, url: str) -> CheckedUrl:
        """Take a URL apart and compare its host with the list.

        Raises:
            InvalidInput: `invalid_url`, or `url_not_allowed`.
        """
        checked = _parsed(url)
        if (checked.scheme, checked.host, checked.port) not in self._allowed:
            raise InvalidInput(
                f"The registry may not fetch from {checked.scheme}://{checked.host}:{checked.port}.",
                code="url_not_allowed",
                remedy="Upload the files, or have the operator add the host to HILORA_REGISTRY_ALLOWED_URL_HOSTS.",
                place=_PLACE,
            )
        return checked


def check_addresses(url: CheckedUrl, addresses: Iterable[str]) -> list[str]:
    """The addresses of a host, if every one of them is public.

    Raises:
        InvalidInput: `private_address`. One private address among public ones is refused, too: who answers so wants
            one of several attempts to hit it.
    """
    found = list(addresses)
    if not found or not all(is_public_address(address) for address in found):
        raise InvalidInput(
            f"{url.host} is at an address that is not public.",
            code="private_address",
            remedy="Put the archive on a public server, or upload it.",
            place=_PLACE,
        )
    return found


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the open Internet, whatever way it is written."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False  # also with a zone (`fe80::1%eth0`), which only local addresses have
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_IPV4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        # What a resolver makes of an IPv4 address where there is only IPv6.
        return is_public_address(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    return address in _OPEN_IPV6 and not any(address in network for network in _CLOSED_IPV6)


def _parsed(url: str) -> CheckedUrl:
    match = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARACTERS else None
    query = match["query"] or "" if match else ""
    port = int(match["port"] or _DEFAULT_PORTS[match["scheme"]]) if match else 0
    if match is None or not 0 < port <= 65535 or (query and not _QUERY.fullmatch(query)):
        raise InvalidInput(
            "This is not a URL that the registry reads.",  # not quoted: it may hold a password
            code="invalid_url",
            remedy="Write https://host/path/adapter.tar.gz: a lower-case host name, no user name, no fragment, "
            "and everything unusual percent-encoded.",
            place=_PLACE,
        )
    return CheckedUrl(scheme=match["scheme"], host=match["host"], port=port, path=match["path"], query=query)


def _allowed_door(entry: str) -> tuple[str, str, int]:
    match = _ENTRY.fullmatch(entry.strip())
    if match is None:
        raise InvalidInput(
            f"{entry!r} is no entry for the list of allowed hosts.",
            code="invalid_setting",
            remedy="Write host, host:port or http://host.",
            place="HILORA_REGISTRY_ALLOWED_URL_HOSTS",
        )
    scheme = match["scheme"] or "https"
    return scheme, match["host"], int(match["port"] or _DEFAULT_PORTS[scheme])
