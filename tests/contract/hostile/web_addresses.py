"""URLs and addresses from hell: the classes of CVE-2025-6242 and CVE-2026-24779 and of other server-side requests."""

from __future__ import annotations

ALLOWED_HOSTS = ("http://files.example", "https://files.example", "http://inside.example")

NOT_ALLOWED = "url_not_allowed"
MALFORMED = "invalid_url"

URLS: dict[str, str] = {
    # the address of cloud metadata, in every way to write it
    "http://169.254.169.254/latest/meta-data/": NOT_ALLOWED,
    "http://2852039166/latest/meta-data/": NOT_ALLOWED,
    "http://0xa9fea9fe/latest/meta-data/": NOT_ALLOWED,
    "http://0xa9.0xfe.0xa9.0xfe/": NOT_ALLOWED,
    "http://0251.0376.0251.0376/": NOT_ALLOWED,
    "http://025177524776/": NOT_ALLOWED,
    "http://169.254.43518/": NOT_ALLOWED,
    "http://169.16689662/": NOT_ALLOWED,
    "http://169.254.169.254.nip.io/": NOT_ALLOWED,
    "http://[::ffff:169.254.169.254]/": MALFORMED,
    "http://[::ffff:a9fe:a9fe]/": MALFORMED,
    "http://[fd00:ec2::254]/": MALFORMED,
    "http://[::1]/": MALFORMED,
    "http://[fe80::1%25eth0]/": MALFORMED,
    "http://metadata.google.internal/computeMetadata/v1/": NOT_ALLOWED,
    "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/": MALFORMED,
    # here
    "http://localhost/a.zip": NOT_ALLOWED,
    "http://127.1/a.zip": NOT_ALLOWED,
    "http://0/a.zip": NOT_ALLOWED,
    "http://0.0.0.0/a.zip": NOT_ALLOWED,
    # what two parsers read in two ways
    "http://files.example@evil.example/a.zip": MALFORMED,
    "http://evil.example@files.example/a.zip": MALFORMED,
    "http://user:password@files.example/a.zip": MALFORMED,
    "http://files.example\\@evil.example/a.zip": MALFORMED,
    "http://evil.example\\files.example/a.zip": MALFORMED,
    "http:\\\\files.example/a.zip": MALFORMED,
    "http:/files.example/a.zip": MALFORMED,
    "http:////files.example/a.zip": MALFORMED,
    "http://files.example#@evil.example/a.zip": MALFORMED,
    "http://files.example?@evil.example/a.zip": MALFORMED,
    "http://files.example;@evil.example/a.zip": MALFORMED,
    "http://files.example%2f@evil.example/a.zip": MALFORMED,
    "http://files.example%00.evil.example/a.zip": MALFORMED,
    "http://files。example/a.zip": MALFORMED,
    "http://ﬁles.example/a.zip": MALFORMED,
    "http://files.example/a\r\nHost: evil.example\r\n.zip": MALFORMED,
    "http://files.example/a.zip\n": MALFORMED,
    "\thttp://files.example/a.zip": MALFORMED,
    "http://files.example/\0.zip": MALFORMED,
    "http://files.example:0/a.zip": MALFORMED,
    "http://files.example:99999/a.zip": MALFORMED,
    "http://files.example:-1/a.zip": MALFORMED,
    "http://files.example:80:81/a.zip": MALFORMED,
    "http://files.example/" + "a" * 3000: MALFORMED,
    "http://" + "a." * 900 + "example/a.zip": NOT_ALLOWED,
    # other hosts, ports and protocols
    "http://files.example.evil.example/a.zip": NOT_ALLOWED,
    "http://evil-files.example/a.zip": NOT_ALLOWED,
    "http://files.example:6379/a.zip": NOT_ALLOWED,
    "https://inside.example/a.zip": NOT_ALLOWED,
    "file:///etc/passwd": MALFORMED,
    "gopher://files.example:6379/_FLUSHALL": MALFORMED,
    "dict://files.example:11211/": MALFORMED,
    "ftp://files.example/a.zip": MALFORMED,
    "jar:http://files.example!/a": MALFORMED,
    "data:application/zip;base64,UEs": MALFORMED,
    "unix:///var/run/docker.sock": MALFORMED,
}
"""The code with which a URL is refused before anything is looked up."""

CLOSED_ADDRESSES = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "169.254.170.2", "100.100.100.200", "100.64.0.1", "192.0.0.192", "168.63.129.16", "198.18.0.1", "224.0.0.1",
    "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "fe80::1", "fe80::1%eth0", "fec0::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376",
    "127.1", "not an address", "",
)  # fmt: skip
"""What a DNS may answer for an allowed host, and is not dialled: `private_address`."""

REDIRECTS: dict[str, str] = {
    "http://169.254.169.254/latest/meta-data/": NOT_ALLOWED,
    "http://2852039166/": NOT_ALLOWED,
    "http://[::ffff:a9fe:a9fe]/": MALFORMED,
    "//169.254.169.254/": NOT_ALLOWED,
    "http://files.example@169.254.169.254/": MALFORMED,
    "http://files.example\\@169.254.169.254/": MALFORMED,
    "\\\\169.254.169.254\\": MALFORMED,
    "file:///etc/passwd": MALFORMED,
    "gopher://127.0.0.1:6379/_FLUSHALL": MALFORMED,
    "http://inside.example/a.zip": "private_address",
    "http://[nonsense/": MALFORMED,
    "/a.zip": "too_many_redirects",
}
"""Where a page of an allowed host may lead, and the code."""
