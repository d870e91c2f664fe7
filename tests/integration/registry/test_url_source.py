"""Archives from web servers: over real sockets, against servers that lie, lead astray, stall and drip."""

from __future__ import annotations

import hashlib
import time
from functools import partial

import pytest

from hilora.errors import Exhausted, InvalidInput, Unavailable, UnsafeArchive
from services.registry.infra.archive import unpack
from services.registry.infra.transfer import FetchLimits
from services.registry.infra.url_source import UrlSource
from tests.builders.archives import CONFIG, SAMPLES, WEIGHTS, adapter_files, tar_bytes
from tests.fakes.internet import answer, internet, redirect
from tests.fakes.registry_stack import ARCHIVE_LIMITS

HOSTS = ("files.example", "http://files.example", "http://mirror.example", "http://inside.example")
ARCHIVE = tar_bytes(adapter_files(), compression="gz")
URL = "http://files.example/sorter.tar.gz"
PUBLIC, OTHER_PUBLIC = "93.184.215.14", "1.1.1.1"


@pytest.fixture
def net(tmp_path):
    with internet(tmp_path) as net:
        net.names = {
            "files.example": [[PUBLIC]],
            "mirror.example": [[OTHER_PUBLIC]],
            "inside.example": [["10.0.0.7"]],
        }
        net.pages["files.example/sorter.tar.gz"] = answer(ARCHIVE)
        yield net


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def source_of(net, *, max_bytes=1 << 20, max_seconds=30.0):
    limits = FetchLimits(max_bytes=max_bytes, max_seconds=max_seconds)
    unpack_limited = partial(unpack, limits=ARCHIVE_LIMITS)
    return UrlSource(allowed_hosts=HOSTS, limits=limits, unpack=unpack_limited, access=net.access())


def fetch(net, folder, url=URL, *, listener=lambda *_: None, **limits):
    return source_of(net, **limits).fetch(url, folder, on_progress=listener)


def refused(net, folder, url=URL, *, kind=InvalidInput, **limits):
    with pytest.raises(kind) as refusal:
        fetch(net, folder, url, **limits)
    assert list(folder.iterdir()) == []
    return refusal.value


class TestFetching:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_an_archive_is_fetched_and_unpacked(self, net, folder, scheme):
        exact = fetch(net, folder, f"{scheme}://files.example/sorter.tar.gz?signature=secret")

        assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, SAMPLES, WEIGHTS])
        digest = hashlib.sha256(ARCHIVE).hexdigest()
        assert exact == f"{scheme}://files.example/sorter.tar.gz#sha256={digest}"
        assert net.requests == ["files.example/sorter.tar.gz?signature=secret"]
        assert net.dialled == [PUBLIC]

    def test_progress_says_how_much_of_how_much(self, net, folder):
        seen = []

        fetch(net, folder, listener=lambda done, total: seen.append((done, total)))

        assert seen[-1] == (len(ARCHIVE), len(ARCHIVE))

    def test_a_body_without_a_length_is_read_to_its_end(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(ARCHIVE, Content_Length="none")

        fetch(net, folder)

        assert (folder / WEIGHTS).read_bytes() == adapter_files()[WEIGHTS]

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_to_an_allowed_host_is_followed(self, net, folder, status):
        net.pages["files.example/sorter.tar.gz"] = redirect("http://mirror.example/a.tgz?signature=s", status=status)
        net.pages["mirror.example/a.tgz"] = answer(ARCHIVE)

        exact = fetch(net, folder)

        assert exact.startswith("http://files.example/sorter.tar.gz#")
        assert net.dialled == [PUBLIC, OTHER_PUBLIC]

    def test_a_relative_redirect_stays_on_its_host(self, net, folder):
        net.pages["files.example/latest.tar.gz"] = redirect("sorter.tar.gz")

        fetch(net, folder, "http://files.example/latest.tar.gz")

        assert net.requests == ["files.example/latest.tar.gz", "files.example/sorter.tar.gz"]

    def test_no_credential_and_no_cookie_is_sent(self, net, folder, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

        fetch(net, folder)

        assert {name.lower() for name in net.headers[0]} == {"host", "accept", "accept-encoding", "user-agent"}


class TestAddresses:
    def test_a_name_with_a_private_address_is_never_dialled(self, net, folder):
        assert refused(net, folder, "http://inside.example/a.zip").code == "private_address"
        assert net.dialled == []

    def test_one_private_address_among_public_ones_is_enough(self, net, folder):
        net.names["files.example"] = [[PUBLIC, "169.254.169.254"]]

        assert refused(net, folder).code == "private_address"
        assert net.dialled == []

    def test_a_second_answer_of_the_dns_is_never_used(self, net, folder):
        net.names["files.example"] = [[PUBLIC], ["127.0.0.1"]]

        fetch(net, folder)

        assert net.dialled == [PUBLIC]

    def test_a_redirect_is_looked_up_again(self, net, folder):
        net.names["files.example"] = [[PUBLIC], ["127.0.0.1"]]
        net.pages["files.example/latest.tar.gz"] = redirect("/sorter.tar.gz")

        assert refused(net, folder, "http://files.example/latest.tar.gz").code == "private_address"
        assert net.dialled == [PUBLIC]

    @pytest.mark.parametrize(
        ("location", "code"),
        [
            ("http://inside.example/a.zip", "private_address"),
            ("http://127.0.0.1/a.zip", "url_not_allowed"),
            ("http://169.254.169.254/latest/meta-data", "url_not_allowed"),
            ("http://evil.example/a.zip", "url_not_allowed"),
            ("http://[::1]/a.zip", "invalid_url"),
            ("http://[nonsense/a.zip", "invalid_url"),
            ("file:///etc/passwd", "invalid_url"),
            ("//evil.example/a.zip", "url_not_allowed"),
            ("http://files.example@evil.example/a.zip", "invalid_url"),
            ("http://files.example\\@evil.example/a.zip", "invalid_url"),
            ("", "too_many_redirects"),
            (URL, "too_many_redirects"),
        ],
    )
    def test_a_redirect_leads_nowhere_else(self, net, folder, location, code):
        net.pages["files.example/sorter.tar.gz"] = redirect(location)

        assert refused(net, folder).code == code
        assert set(net.dialled) == {PUBLIC}

    def test_a_redirect_never_leaves_encryption(self, net, folder):
        net.pages["files.example/safe.tar.gz"] = redirect(URL)

        assert refused(net, folder, "https://files.example/safe.tar.gz").code == "url_not_allowed"

    def test_a_certificate_for_another_name_is_refused(self, net, folder):
        net.names["mirror.example"] = [[PUBLIC]]
        source = UrlSource(
            allowed_hosts=("mirror.example",),
            limits=FetchLimits(max_bytes=1 << 20, max_seconds=30.0),
            unpack=partial(unpack, limits=ARCHIVE_LIMITS),
            access=net.access(),
        )

        with pytest.raises(Unavailable, match="certificate"):
            source.fetch("https://mirror.example/a.zip", folder, on_progress=lambda *_: None)
        assert net.requests == []


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [
            (401, InvalidInput, "url_access_denied"),
            (403, InvalidInput, "url_access_denied"),
            (404, InvalidInput, "url_not_found"),
            (410, InvalidInput, "url_not_found"),
            (418, InvalidInput, "url_refused"),
            (206, InvalidInput, "url_refused"),
            (408, Unavailable, "url_unavailable"),
            (500, Unavailable, "url_unavailable"),
            (503, Unavailable, "url_unavailable"),
            (429, Exhausted, "url_rate_limited"),
        ],
    )
    def test_only_what_can_pass_is_worth_another_attempt(self, net, folder, status, kind, code):
        net.pages["files.example/sorter.tar.gz"] = answer(b"no", status=status, Retry_After="9")

        error = refused(net, folder, kind=kind)

        assert error.code == code
        assert getattr(error, "retry_after_seconds", 9.0) == 9.0

    def test_a_size_above_the_limit_is_refused_before_it_is_read(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(b"", Content_Length=str(10**15))

        assert refused(net, folder).code == "upload_too_large"

    def test_a_body_above_the_limit_is_stopped(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(bytes(3 << 20), Content_Length="none")

        assert refused(net, folder).code == "upload_too_large"

    def test_a_body_that_ends_early_is_worth_another_attempt(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(ARCHIVE[:-10], Content_Length=str(len(ARCHIVE)))

        assert refused(net, folder, kind=Unavailable).code == "url_unavailable"

    def test_a_compressed_body_is_not_unpacked_twice(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(ARCHIVE, Content_Encoding="gzip")

        assert refused(net, folder).code == "url_refused"

    def test_the_archive_is_checked_like_an_upload(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = answer(tar_bytes({"../../evil": b""}))

        assert refused(net, folder, kind=UnsafeArchive).code == "unsafe_path"

    def test_nonsense_instead_of_http(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = lambda request: request.wfile.write(b"\0" * 100)

        assert refused(net, folder, kind=Unavailable).code == "url_unavailable"

    def test_a_name_that_nobody_knows(self, net, folder):
        del net.names["files.example"]

        assert refused(net, folder, kind=Unavailable).code == "url_unavailable"


def drip(request):
    """A byte now and then, for ever."""
    while True:
        request.wfile.write(b"X")
        time.sleep(0.01)


def drip_headers(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    drip(request)


def drip_body(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    drip(request)


def redirect_slowly(request):
    time.sleep(0.3)
    redirect(URL)(request)


class TestTime:
    @pytest.mark.parametrize("script", [drip, drip_headers, drip_body])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_server_that_drips_is_cut_off(self, net, folder, scheme, script):
        net.pages["files.example/sorter.tar.gz"] = script

        error = refused(net, folder, f"{scheme}://files.example/sorter.tar.gz", max_seconds=0.7)

        assert error.code == "fetch_too_slow"

    def test_redirects_count_into_the_time(self, net, folder):
        net.pages["files.example/sorter.tar.gz"] = redirect_slowly

        assert refused(net, folder, max_seconds=0.7).code == "fetch_too_slow"

    def test_a_listener_that_had_enough_ends_the_fetch(self, net, folder):
        def enough(*_):
            raise Unavailable("enough", code="fetch_stopped")

        assert refused(net, folder, kind=Unavailable, listener=enough).code == "fetch_stopped"
