"""Which URLs of strangers are opened, and at which addresses: one table each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.errors import InvalidInput
from services.registry.infra.url_guard import UrlGuard, check_addresses, is_public_address

GUARD = UrlGuard(
    [
        "files.example",
        "https://mirror.example:8443",
        "http://plain.example",
        "http://plain.example:8080",
        "2130706433",
        "127.0.0.1",
    ]
)

ALLOWED = {
    "https://files.example/sorter.tar.gz": "https://files.example/sorter.tar.gz",
    "https://files.example:443/sorter.zip": "https://files.example/sorter.zip",
    "https://files.example./sorter.zip": "https://files.example/sorter.zip",
    "https://files.example/a/b%20c/sorter.zip?token=secret&x=1": "https://files.example/a/b%20c/sorter.zip",
    "https://files.example/@me/sorter.zip": "https://files.example/@me/sorter.zip",
    "https://mirror.example:8443/sorter.zip": "https://mirror.example:8443/sorter.zip",
    "http://plain.example/sorter.zip": "http://plain.example/sorter.zip",
    "http://plain.example:8080/sorter.zip": "http://plain.example:8080/sorter.zip",
}

REFUSED = {
    # another host, scheme or port than the operator's
    "https://evil.example/a.zip": "url_not_allowed",
    "https://sub.files.example/a.zip": "url_not_allowed",
    "https://files.example.evil.example/a.zip": "url_not_allowed",
    "https://evilfiles.example/a.zip": "url_not_allowed",
    "http://files.example/a.zip": "url_not_allowed",
    "https://files.example:8443/a.zip": "url_not_allowed",
    "https://mirror.example/a.zip": "url_not_allowed",
    "https://plain.example/a.zip": "url_not_allowed",
    "https://localhost/a.zip": "url_not_allowed",
    "https://169.254.169.254/latest/meta-data/": "url_not_allowed",
    "https://metadata.google.internal/computeMetadata/v1/": "url_not_allowed",
    "https://0x7f000001/a.zip": "url_not_allowed",
    "https://017700000001/a.zip": "url_not_allowed",
    "https://127.1/a.zip": "url_not_allowed",
    # other protocols
    "ftp://files.example/a.zip": "invalid_url",
    "file:///etc/passwd": "invalid_url",
    "gopher://files.example/_x": "invalid_url",
    "dict://files.example:11211/": "invalid_url",
    "data:application/zip;base64,UEs": "invalid_url",
    "HTTPS://files.example/a.zip": "invalid_url",
    "https:files.example/a.zip": "invalid_url",
    "https:///files.example/a.zip": "invalid_url",
    "//files.example/a.zip": "invalid_url",
    "": "invalid_url",
    # what two parsers read in two ways
    "https://user:password@files.example/a.zip": "invalid_url",
    "https://files.example@evil.example/a.zip": "invalid_url",
    "https://files.example:443@evil.example/a.zip": "invalid_url",
    "https://files.example\\@evil.example/a.zip": "invalid_url",
    "https://evil.example\\.files.example/a.zip": "invalid_url",
    "https:\\\\files.example/a.zip": "invalid_url",
    "https://files.example#@evil.example/a.zip": "invalid_url",
    "https://files.example/a.zip#fragment": "invalid_url",
    "https://files.example?@evil.example/": "invalid_url",
    "https://files.example%2eevil.example/a.zip": "invalid_url",
    "https://files.example%00.evil.example/a.zip": "invalid_url",
    "https://files.example /a.zip": "invalid_url",
    " https://files.example/a.zip": "invalid_url",
    "https://files.example/a.zip\n": "invalid_url",
    "https://files.example/a\r\nHost: evil.example\r\n\r\n.zip": "invalid_url",
    "https://files.example/a\tb.zip": "invalid_url",
    "https://files.example/a b.zip": "invalid_url",
    "https://files.example/\0.zip": "invalid_url",
    "https://FILES.example/a.zip": "invalid_url",
    "https://ﬁles.example/a.zip": "invalid_url",
    "https://files。example/a.zip": "invalid_url",
    "https://files.example/ä.zip": "invalid_url",
    "https://[::1]/a.zip": "invalid_url",
    "https://[::ffff:127.0.0.1]/a.zip": "invalid_url",
    "https://[fe80::1%25eth0]/a.zip": "invalid_url",
    "https://files..example/a.zip": "invalid_url",
    "https://-files.example/a.zip": "invalid_url",
    "https://files.example:/a.zip": "invalid_url",
    "https://files.example:0/a.zip": "invalid_url",
    "https://files.example:65536/a.zip": "invalid_url",
    "https://files.example:４４３/a.zip": "invalid_url",
    "https://files.example:+443/a.zip": "invalid_url",
    "https://files.example": "invalid_url",
    f"https://files.example/{'a' * 3000}.zip": "invalid_url",
}

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::200e",
    "64:ff9b::808:808",
]
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "127.1",
    "0x7f.0.0.1",
    "2130706433",
]


class TestUrls:
    @pytest.mark.parametrize("url", ALLOWED)
    def test_a_host_of_the_list_is_allowed_and_shown_without_its_query(self, url):
        checked = GUARD.check(url)

        assert checked.shown == ALLOWED[url]
        assert "secret" not in checked.shown

    @pytest.mark.parametrize("url", REFUSED)
    def test_everything_else_is_refused(self, url):
        with pytest.raises(InvalidInput) as refusal:
            GUARD.check(url)

        assert refusal.value.code == REFUSED[url]
        assert refusal.value.remedy
        assert "password" not in str(refusal.value)

    def test_an_empty_list_allows_nothing(self):
        with pytest.raises(InvalidInput, match="may not fetch"):
            UrlGuard([]).check("https://files.example/a.zip")

    @pytest.mark.parametrize("entry", ["", "*", "https://a.example/path", "a.example:x", "ftp://a.example", "u@a.b"])
    def test_a_list_that_says_nothing_sound_is_refused_at_the_start(self, entry):
        with pytest.raises(InvalidInput) as refusal:
            UrlGuard([entry])

        assert refusal.value.code == "invalid_setting"

    @given(st.text(max_size=60), st.sampled_from(["https://files.example", "https://", "", "http://plain.example"]))
    def test_whatever_is_let_through_goes_to_a_host_of_the_list(self, tail, head):
        try:
            checked = GUARD.check(head + tail)
        except InvalidInput:
            return

        assert checked.host in {"files.example", "mirror.example", "plain.example", "2130706433", "127.0.0.1"}
        assert checked.target.isascii()
        assert checked.target.isprintable()
        assert " " not in checked.target


class TestAddresses:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_addresses_of_the_open_internet(self, address):
        assert is_public_address(address)

    @pytest.mark.parametrize("address", PRIVATE)
    def test_every_other_address_is_closed(self, address):
        assert not is_public_address(address)

    @pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["10.0.0.1", "1.1.1.1"]])
    def test_one_private_address_refuses_the_host(self, addresses):
        with pytest.raises(InvalidInput) as refusal:
            check_addresses(GUARD.check("https://files.example/a.zip"), addresses)

        assert refusal.value.code == "private_address"
