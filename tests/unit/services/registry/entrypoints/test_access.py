"""Who gets through the gate of the REST door, and what the audit log says about it."""

from __future__ import annotations

import re

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from services.common.auth import AccessKey, Scope
from services.registry.audit import AuditOutcome
from services.registry.entrypoints import access
from tests.builders.archives import adapter_files
from tests.fakes.registry_stack import RegistryStack

KEYS = {scope: AccessKey.of_secret(f"{scope}-only", SecretStr(scope.value), frozenset({scope})) for scope in Scope}


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path, keys=tuple(KEYS.values()))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def routes_of(stack):
    """Every method and path the application answers, as its own schema lists them."""
    return [
        (method.upper(), re.sub(r"\{\w+\}", "x", path))
        for path, methods in stack.app.app.openapi()["paths"].items()
        for method in methods
    ]


async def events(stack):
    return stack.audit.page(before=None, limit=100).events


class TestDefaultDeny:
    async def test_every_route_but_the_probes_refuses_without_a_key(self, stack):
        routes = routes_of(stack)
        public = [path for _, path in routes if path in access.PUBLIC_PATHS]
        assert len(routes) >= 13
        assert sorted(public) == ["/healthz", "/metrics", "/readyz"]
        async with stack.client() as client:
            for method, path in routes:
                answers = [
                    await client.request(method, path),
                    await client.request(method, path, headers=bearer("wrong")),
                    await client.request(method, path, headers={"Authorization": "read"}),
                ]
                expected = 200 if path in access.PUBLIC_PATHS else 401
                assert [answer.status_code for answer in answers] == [expected] * 3, (method, path)

    async def test_every_other_route_refuses_a_key_without_its_scope(self, stack):
        """Each scope alone opens some routes and not all: a route that forgot its scope would answer all three."""
        async with stack.client() as client:
            for method, path in routes_of(stack):
                if path in access.PUBLIC_PATHS or path.endswith("/events"):
                    continue
                statuses = [
                    (await client.request(method, path, headers=bearer(scope.value), json={})).status_code
                    for scope in Scope
                ]
                assert statuses.count(403) == len(Scope) - 1, (method, path, statuses)

    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/docs", "/redoc", "/openapi.json", "/v1/adapters/"])
    async def test_what_is_not_there_is_not_told_to_strangers(self, stack, path):
        async with stack.client() as client:
            answer = await client.get(path)

        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"

    async def test_a_host_header_opens_nothing(self, stack):
        async with stack.client() as client:
            answer = await client.get("/v1/adapters", headers={"Host": "localhost/healthz?x="})

        assert answer.status_code == 401

    def test_a_route_that_names_no_scope_does_not_start(self):
        routes = APIRouter()

        @routes.post("/v1/forgotten")
        async def forgotten() -> None: ...

        with pytest.raises(ValueError, match="forgotten names no scope"):
            access.include(FastAPI(), routes)


class TestAnonymous:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example"},
            {"Host": "localhost.evil.example"},
        ],
    )
    async def test_a_web_page_is_not_the_operator(self, tmp_path, headers):
        async with RegistryStack(tmp_path).client() as client:
            answer = await client.get("/v1/adapters", headers=headers)

        assert answer.status_code == 401

    @pytest.mark.parametrize("headers", [{}, {"Host": "127.0.0.1:8000"}, {"Origin": "http://localhost:3000"}])
    async def test_local_programs_are(self, tmp_path, headers):
        async with RegistryStack(tmp_path).client() as client:
            answer = await client.get("/v1/adapters", headers=headers)

        assert answer.status_code == 200


class TestAudit:
    async def test_every_change_names_who_what_and_how_it_ended(self, stack):
        async with stack.client() as client:
            client.headers.update(bearer("write"))
            files = [("files", item) for item in adapter_files().items()]
            accepted = await client.post(
                "/v1/adapters", data={"name": "sorter"}, files=files, headers={"X-Request-Id": "call-1"}
            )
            await stack.work()
            await client.delete("/v1/adapters/sorter")
            await client.delete("/v1/adapters/sorter")
        job_id = accepted.json()["job_id"]

        found = [
            (event.principal, event.action, event.outcome, event.door, event.code) for event in await events(stack)
        ]

        assert accepted.headers["X-Request-Id"] == "call-1"
        assert found == [
            ("write-only", "retire_adapter", AuditOutcome.REFUSED, "rest", "unknown_adapter"),
            ("write-only", "retire_adapter", AuditOutcome.DONE, "rest", None),
            ("write-only", "ingest", AuditOutcome.DONE, "ingest", None),
            ("write-only", "add_adapter", AuditOutcome.ACCEPTED, "rest", None),
        ]
        *_, ingested, added = await events(stack)
        assert (added.adapter, added.job_id, added.request_id) == ("sorter", job_id, "call-1")
        assert (ingested.job_id, ingested.request_id) == (job_id, "call-1")
        assert ingested.adapter.startswith("sorter@")

    async def test_reading_leaves_no_line_and_neither_do_strangers(self, stack):
        async with stack.client() as client:
            await client.get("/v1/adapters", headers=bearer("read"))
            await client.delete("/v1/adapters/sorter")

        assert await events(stack) == ()

    async def test_a_known_key_that_tries_too_much_does(self, stack):
        async with stack.client() as client:
            await client.delete("/v1/adapters/sorter", headers=bearer("read"))

        (event,) = await events(stack)
        assert (event.principal, event.code) == ("read-only", "insufficient_scope")

    async def test_it_is_read_in_pages_newest_first(self, stack):
        async with stack.client() as client:
            for number in range(5):
                await client.delete(f"/v1/adapters/a{number}", headers=bearer("write"))
            client.headers.update(bearer("read"))
            first = (await client.get("/v1/audit?limit=3")).json()
            second = (await client.get(f"/v1/audit?limit=3&before={first['next_before']}")).json()
            refused = await client.get("/v1/audit?before=nonsense")

        names = [event["adapter"] for page in (first, second) for event in page["data"]]
        assert names == ["a4", "a3", "a2", "a1", "a0"]
        assert second["next_before"] is None
        assert refused.json()["error"]["code"] == "invalid_cursor"

    async def test_no_key_is_written(self, stack):
        async with stack.client() as client:
            await client.delete("/v1/adapters/x", headers=bearer("write"))
        text = "".join(path.read_text() for path in (stack.data_dir / "audit").glob("*.jsonl"))

        assert text
        assert KEYS[Scope.WRITE].sha256 not in text
        assert "Bearer" not in text

    async def test_an_answer_is_held_back_where_the_log_cannot_be_written(self, stack, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(stack.audit, "append", full)
        async with stack.client() as client:
            answer = await client.delete("/v1/adapters/x", headers=bearer("write"))

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_unavailable")
