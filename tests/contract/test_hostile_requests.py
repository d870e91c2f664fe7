"""Requests to the registry that no client would send: answered with 4xx in one shape, and nothing is kept."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders.archives import adapter_files
from tests.fakes.registry_stack import RegistryStack

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
HUB = b'"source": {"hub": "owner/name"}'


def part(disposition: str, content: bytes = b"1") -> bytes:
    """A form of one part."""
    return b"--x\r\nContent-Disposition: form-data%s\r\n\r\n%s\r\n--x--\r\n" % (disposition.encode(), content)


BODIES = {
    "empty": b"",
    "not json": b"hello",
    "cut": b'{"source": {"hub": "o',
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e999",
    "invalid utf-8": b'{"source": {"hub": "\xff"}}',
    "utf-16": '{"source": {"hub": "o/n"}}'.encode("utf-16"),
    "half a character": rb'{"name": "\ud800", "source": {"hub": "o/n"}}',
    "half a character in a key": rb'{"\ud800": 1}',
    "deep": b'{"source": ' + b"[" * 100_000,
    "deep source": b'{"source": ' + b'{"hub":' * 900 + b"1" + b"}" * 901,
    "a huge integer": b'{"squeeze": {"rank": ' + b"9" * 10_000 + b"}, " + HUB + b"}",
    "a rank that is a boolean": b'{"squeeze": {"rank": true}, ' + HUB + b"}",
    "an energy that is not a number": b'{"squeeze": {"energy": NaN}, ' + HUB + b"}",
    "an infinite energy": b'{"squeeze": {"energy": Infinity}, ' + HUB + b"}",
    "both squeezes": b'{"squeeze": {"energy": 0.5, "rank": 1}, ' + HUB + b"}",
    "a name that is an object": b'{"name": {"$ne": 1}, ' + HUB + b"}",
    "a name of 1 MB": b'{"name": "' + b"x" * 1_000_000 + b'", ' + HUB + b"}",
    "replace that is a list": b'{"replace": [], ' + HUB + b"}",
    "1001 samples": b'{"samples": ' + json.dumps(["a"] * 1001).encode() + b", " + HUB + b"}",
    "samples that are no texts": b'{"samples": [{"text": "a"}], ' + HUB + b"}",
    "a sample of 40,000 characters": b'{"samples": ["' + b"x" * 40_000 + b'"], ' + HUB + b"}",
    "two sources": b'{"source": {"hub": "o/n", "path": "/etc"}}',
    "a source that is a text": b'{"source": "owner/name"}',
    "a secret in a URL": b'{"source": {"url": "https://user:hunter2@files.example/a.zip"}}',
    "a URL of 3000 characters": b'{"source": {"url": "https://' + b"a" * 3000 + b'"}}',
    "a path of 4000 characters": b'{"source": {"path": "/' + b"a" * 4000 + b'"}}',
    "a NUL in a path": b'{"source": {"path": "/tmp/\\u0000"}}',
    "CVE-2026-22807: a field that would run code": b'{"trust_remote_code": true, ' + HUB + b"}",
}
PARTS = {
    "no boundary": b"hello",
    "a header of 1 MB": b"--x\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n1\r\n--x--\r\n",
    "1000 headers": b"--x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + b"\r\n1\r\n--x--\r\n",
    "no name": part(""),
    "a path": part('; name="f"; filename="../../etc/cron.d/x"'),
    "a name of another encoding": part("; name=\"f\"; filename*=utf-7''%2e%2e%2fx"),
    "a name of emoji": part("; name=\"f\"; filename*=utf-8''%F0%9F%98%80"),
    "our own file of an archive": part('; name="f"; filename=".archive"'),
    "our own request": part('; name="f"; filename="request.json"'),
    "a squeeze that is no JSON": part('; name="squeeze"', b"{rank}"),
    "a text without an adapter": part('; name="name"'),
}
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SOURCES = TREES | st.dictionaries(st.sampled_from(["hub", "path", "object", "url"]), TREES, max_size=4)
REQUESTS = TREES | st.fixed_dictionaries(
    {}, optional={"name": TREES, "source": SOURCES, "samples": TREES, "replace": TREES, "squeeze": TREES}
)


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def refused(stack, *, method="POST", path="/v1/adapters", **request):
    async with stack.client() as client:
        answer = await client.request(method, path, **request)
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500])
    error = answer.json()["error"]
    assert error["message"]
    assert error["code"]
    assert stack.stored() == []
    return answer


class TestBodies:
    @pytest.mark.parametrize("case", BODIES)
    async def test_a_body_that_makes_no_sense_is_refused(self, stack, case):
        answer = await refused(stack, content=BODIES[case], headers=JSON)

        assert "hunter2" not in answer.text

    @pytest.mark.parametrize("case", PARTS)
    async def test_a_form_that_makes_no_sense_is_refused(self, stack, case):
        await refused(stack, content=PARTS[case], headers=FORM)

    def test_any_json_is_refused_or_accepted(self, tmp_path):
        stack = RegistryStack(tmp_path)

        @settings(max_examples=300, deadline=None, derandomize=True, database=None)
        @given(body=REQUESTS)
        def check(body):
            assert asyncio.run(_status(stack, json.dumps(body).encode(), JSON)) < 500

        check()

    def test_a_damaged_form_is_refused_or_accepted(self, tmp_path):
        stack = RegistryStack(tmp_path)
        whole = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
            for name, data in adapter_files().items()
        )
        whole = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nsorter\r\n' + whole + b"--x--\r\n"

        @settings(
            max_examples=300,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(source=st.randoms(use_true_random=False))
        def check(source):
            assert asyncio.run(_status(stack, _damaged(source, whole), FORM)) < 500

        check()


class TestPlaces:
    @pytest.mark.parametrize(
        "name", ["..%2f..%2fetc%2fpasswd", "%00", "%ff", "a" * 5000, "..%5cx", "%F0%9F%98%80", "*", "a@b@c"]
    )
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    async def test_an_adapter_of_an_impossible_name_is_unknown(self, stack, method, name):
        await refused(stack, method=method, path=f"/v1/adapters/{name}")

    @pytest.mark.parametrize("job_id", ["..%2f..%2fx", "%00", "x" * 5000, "*", "00000000000000000000000000000000"])
    async def test_a_job_of_an_impossible_name_is_unknown(self, stack, job_id):
        await refused(stack, path=f"/v1/jobs/{job_id}", method="GET")

    @pytest.mark.parametrize("query", ["name=..%2fx", "name=%ff", "replace=maybe&name=a", "name=" + "x" * 5000])
    async def test_a_query_that_makes_no_sense_is_refused(self, stack, query):
        headers = {"Content-Type": "application/zip"}

        await refused(stack, method="PUT", path=f"/v1/adapters?{query}", content=b"PK\x03\x04", headers=headers)


async def _status(stack, content, headers):
    async with stack.client() as client:
        return (await client.post("/v1/adapters", content=content, headers=headers)).status_code


def _damaged(source: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data))
        data[at : at + source.choice((0, 1, 30))] = source.choice(
            (b"", b"\r\n", b'"', b"--x", b"\0", b"\xff", b";", b"%")
        )
    return bytes(data)
