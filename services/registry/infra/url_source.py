"""Reads adapters from archives on web servers that the operator names; see `url_guard` for what is refused."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

from hilora.errors import Exhausted, InvalidInput, Unavailable
from services.registry.infra.pinned_http import HttpAccess, pinned_get
from services.registry.infra.transfer import COPY_BYTES, FetchLimits, Transfer
from services.registry.infra.url_guard import CheckedUrl, UrlGuard, check_addresses
from services.registry.ports import ArchiveUnpacker, ProgressListener

_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER_SECONDS = 3600.0
_ARCHIVE_FILE = ".archive"
_PLACE = "source.url"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class UrlSource:
    """See `AdapterSource`; a reference is the URL of an archive.

    Args:
        allowed_hosts: see `UrlGuard`; none switches this source off.
        limits: on the archive's bytes and on the time for it, redirects included.
        unpack: takes the files out.
        access: how the network is reached.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Sequence[str],
        limits: FetchLimits,
        unpack: ArchiveUnpacker,
        access: HttpAccess | None = None,
    ) -> None:
        self._is_on = bool(allowed_hosts)
        self._guard = UrlGuard(allowed_hosts)
        self._limits = limits
        self._unpack = unpack
        self._access = access or HttpAccess()

    def check(self, reference: str) -> None:
        """See `AdapterSource.check`. Raises InvalidInput: `url_not_allowed` or `invalid_url`."""
        if not self._is_on:
            raise InvalidInput(
                "This registry fetches nothing from web servers.",
                code="url_not_allowed",
                remedy="Upload the files, or have the operator set HILORA_REGISTRY_ALLOWED_URL_HOSTS.",
                place=_PLACE,
            )
        self._guard.check(reference)

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """See `AdapterSource.fetch`; returns `<url without its query>#sha256=<digest of the archive>`."""
        self.check(reference)
        url = self._guard.check(reference)
        archive = folder / _ARCHIVE_FILE
        try:
            digest = self._download(url, archive, on_progress)
            self._unpack(archive, folder)
        finally:
            archive.unlink(missing_ok=True)
        return f"{url.shown}#sha256={digest}"

    def _download(self, url: CheckedUrl, archive: Path, on_progress: ProgressListener) -> str:
        transfer = Transfer(self._limits, on_progress=on_progress, place=_PLACE)
        for _ in range(_MAX_REDIRECTS + 1):
            with self._answer(url, transfer) as answer:
                if answer.status in _REDIRECTS:
                    url = self._redirected(url, answer.getheader("Location") or "")
                    continue
                _check_status(url, answer)
                return _receive(url, answer, archive, transfer)
        raise InvalidInput(
            f"{url.shown} is redirected more than {_MAX_REDIRECTS} times.",
            code="too_many_redirects",
            remedy="Give the address at which the archive really is.",
            place=_PLACE,
        )

    @contextmanager
    def _answer(self, url: CheckedUrl, transfer: Transfer) -> Generator[http.client.HTTPResponse]:
        """The answer to one request, with the network's errors turned into ours."""
        try:
            addresses = check_addresses(url, self._access.resolve(url.host, url.port))
            with pinned_get(url, addresses, access=self._access, max_seconds=transfer.seconds_left) as answer:
                yield answer
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if transfer.seconds_left <= 0:
                raise transfer.too_slow() from error
            raise _unavailable(url, f"{type(error).__name__}: {str(error)[:200]}") from error

    def _redirected(self, url: CheckedUrl, location: str) -> CheckedUrl:
        try:
            target = self._guard.check(urljoin(url.full, location))
        except ValueError as error:  # of urljoin: brackets that hold no address
            raise InvalidInput(
                f"{url.shown} is redirected to something that is no URL.",
                code="invalid_url",
                remedy="Give the address at which the archive really is.",
                place=_PLACE,
            ) from error
        if (url.scheme, target.scheme) == ("https", "http"):
            raise InvalidInput(
                f"{url.shown} is redirected to an unencrypted address.",
                code="url_not_allowed",
                remedy="Give the address at which the archive really is.",
                place=_PLACE,
            )
        return target


def _receive(url: CheckedUrl, answer: http.client.HTTPResponse, archive: Path, transfer: Transfer) -> str:
    """Write the body to disk and return its digest."""
    expected_bytes = answer.length
    transfer.expect(expected_bytes)
    digest = hashlib.sha256()
    with archive.open("wb") as sink:
        while data := answer.read(COPY_BYTES):
            transfer.count(len(data))
            digest.update(data)
            sink.write(data)
    if transfer.seconds_left <= 0:
        raise transfer.too_slow()
    if expected_bytes is not None and transfer.done_bytes != expected_bytes:
        raise _unavailable(url, f"it sent {transfer.done_bytes} of {expected_bytes} bytes")
    return digest.hexdigest()


def _check_status(url: CheckedUrl, answer: http.client.HTTPResponse) -> None:
    status = answer.status
    encoding = (answer.getheader("Content-Encoding") or "identity").lower()
    if status == 200 and encoding == "identity":
        return
    if status == 429:
        raise Exhausted(
            f"{url.host} wants to be asked later.",
            code="url_rate_limited",
            retry_after_seconds=_retry_after(answer, otherwise=60.0),
            place=_PLACE,
        )
    if status >= 500 or status == 408:
        raise _unavailable(url, f"it answers {status}", retry_after_seconds=_retry_after(answer, otherwise=1.0))
    if status in {401, 403}:
        code, reason = "url_access_denied", "may not be read without credentials"
    elif status in {404, 410}:
        code, reason = "url_not_found", "does not exist"
    else:
        code, reason = "url_refused", f"is answered with status {status} and encoding {encoding[:20]!r}"
    raise InvalidInput(
        f"{url.shown} {reason}.", code=code, remedy="Check the address, or upload the archive.", place=_PLACE
    )


def _retry_after(answer: http.client.HTTPResponse, *, otherwise: float) -> float:
    """The seconds that the server names (RFC 9110, 10.2.3; dates are not read)."""
    text = answer.getheader("Retry-After") or ""
    return min(_MAX_RETRY_AFTER_SECONDS, float(text)) if text.isdecimal() else otherwise


def _unavailable(url: CheckedUrl, reason: str, *, retry_after_seconds: float = 1.0) -> Unavailable:
    return Unavailable(
        f"{url.shown} cannot be fetched: {reason}.",
        code="url_unavailable",
        retry_after_seconds=retry_after_seconds,
        remedy="Try again later, or upload the archive.",
        place=_PLACE,
    )
