"""`hilora adapters ...` against the real REST door, without a socket."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from hilora.errors import HiloraError, Unauthenticated
from hilora_cli import adapters, api_client
from tests.builders.archives import adapter_files
from tests.fakes.registry_stack import RegistryStack

KEY = "operator"


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A registry; every client that a command opens talks to it."""
    stack = RegistryStack(tmp_path / "data", key=KEY)
    original = api_client.ApiClient.__init__

    def connected(self, url, *, api_key=None, transport=None):
        original(self, url, api_key=api_key, transport=httpx.ASGITransport(app=stack.app))

    monkeypatch.setattr(api_client.ApiClient, "__init__", connected)
    # The server's log would otherwise stand between the lines of the command.
    with structlog.testing.capture_logs():
        yield stack


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sorter"
    folder.mkdir()
    for name, data in adapter_files().items():
        (folder / name).write_bytes(data)
    return folder


def run(*arguments, key=KEY):
    return CliRunner().invoke(adapters.app, list(arguments), env={"HILORA_ADMIN_KEY": key} if key else {})


def answer(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class TestCommands:
    def test_an_adapter_s_life(self, stack, folder):
        job = answer("add", str(folder))
        asyncio.run(stack.work())

        assert job["state"] == "PENDING"
        assert [entry["name"] for entry in answer("list")] == ["sorter"]
        assert answer("list", "--prefix", "x") == []
        assert answer("show", "sorter")["name"] == "sorter"
        assert [item["state"] for item in answer("jobs", "--state", "ready")] == ["READY"]
        assert answer("remove", "sorter")["state"] == "RETIRED"
        assert [event["action"] for event in answer("audit-log")["data"]] == [
            "retire_adapter",
            "ingest",
            "add_adapter",
        ]

    def test_one_is_compressed_when_it_is_added(self, stack, folder):
        answer("add", str(folder), "--squeeze-rank", "1")
        asyncio.run(stack.work())

        shown = answer("show", "sorter")
        assert (shown["lora_rank"], shown["provenance"]["squeeze"]) == (1, {"rank": 1, "energy": None})

    def test_two_ways_to_compress_exclude_each_other(self, stack, folder):
        assert run("add", str(folder), "--squeeze-rank", "1", "--squeeze-energy", "0.9").exit_code == 2

    def test_a_job_is_called_off(self, stack, folder):
        job = answer("add", str(folder))

        assert answer("cancel", job["job_id"])["state"] == "CANCELLED"
        assert run("cancel", job["job_id"]).exit_code == 1

    def test_for_people_there_are_tables_and_sentences(self, stack, folder):
        added = run("add", str(folder))
        asyncio.run(stack.work())

        assert "sorter PENDING (job " in added.stdout
        assert "sorter" in run("list").stdout
        assert "READY" in run("jobs").stdout
        assert "add_adapter" in run("audit-log").stdout
        assert run("remove", "sorter").stdout == "sorter removed\n"


class TestKeys:
    @pytest.mark.parametrize("name", ["HILORA_ADMIN_KEY", "HILORA_API_KEY"])
    def test_it_comes_from_the_environment(self, stack, name):
        assert CliRunner().invoke(adapters.app, ["list"], env={name: KEY}).exit_code == 0

    def test_or_from_an_option(self, stack):
        assert run("list", "--admin-key", KEY, key=None).exit_code == 0
        assert run("list", "--api-key", KEY, key=None).exit_code == 0

    def test_without_it_the_server_s_refusal_is_raised(self, stack):
        result = run("list", key="wrong")

        assert isinstance(result.exception, Unauthenticated)
        assert result.exception.code == "invalid_api_key"


class TestEvents:
    def transport(self, *bodies):
        remaining = list(bodies)

        def handle(request):
            self.requests.append(request)
            return httpx.Response(200, text=remaining.pop(0))

        self.requests = []
        return httpx.MockTransport(handle)

    @pytest.fixture
    def connect(self, monkeypatch):
        def connect(*bodies):
            original = api_client.ApiClient.__init__
            transport = self.transport(*bodies)

            def connected(client, url, *, api_key=None):
                original(client, url, api_key=api_key, transport=transport)

            monkeypatch.setattr(api_client.ApiClient, "__init__", connected)

        return connect

    UPSERT = 'event: upsert\nid: 3\ndata: {"catalog_generation":3,"name":"a","adapter":{"adapter_id":"a@1"}}\n\n'
    REMOVE = 'event: remove\nid: 4\ndata: {"catalog_generation":4,"name":"a"}\n\n'
    BROKEN = 'event: error\ndata: {"error":{"message":"Redis is away.","code":"redis_unavailable"}}\n\n'

    def test_what_happened_so_far_until_there_is_silence(self, connect):
        connect(self.UPSERT + self.REMOVE + ": heartbeat\n\n" + self.UPSERT)

        result = run("events", "--after", "2")

        assert result.stdout.splitlines() == ["3 + a@1", "4 - a"]
        assert self.requests[0].url.params["after"] == "2"

    def test_one_object_a_line_for_programs(self, connect):
        connect(self.UPSERT)

        lines = run("events", "--json").stdout.splitlines()

        assert [json.loads(line)["event"] for line in lines] == ["upsert"]

    def test_following_goes_on_after_a_restart_where_it_was(self, connect, monkeypatch):
        monkeypatch.setattr(adapters, "_SECONDS_BEFORE_RECONNECTING", 0)
        connect(self.UPSERT, self.REMOVE, self.BROKEN)

        result = run("events", "--follow")

        assert result.stdout.splitlines() == ["3 + a@1", "4 - a"]
        assert [request.headers.get("last-event-id") for request in self.requests] == [None, "3", "4"]
        assert isinstance(result.exception, HiloraError)
        assert result.exception.code == "redis_unavailable"


class TestAddPool:
    @pytest.fixture
    def pool(self, folder, monkeypatch):
        """A folder of two adapters; no ingest process is here to finish a job, so none is waited for."""
        twin = folder.parent / "twin"
        twin.mkdir()
        for name, data in adapter_files().items():
            (twin / name).write_bytes(data)

        async def at_once(client, job, **_):
            return job

        monkeypatch.setattr("hilora_cli.pool_seeding.wait_for_job", at_once)
        return folder.parent

    def test_every_adapter_of_the_folder_is_sent(self, stack, pool):
        assert answer("add-pool", str(pool)) == {"added": ["sorter", "twin"], "failed": {}, "present": 0}

    def test_a_refused_one_is_named_and_keeps_no_other(self, stack, pool):
        (pool / "twin" / "adapter_model.safetensors").write_bytes(b"no tensors")

        result = run("add-pool", str(pool), "--json")

        assert result.exit_code == 1
        said = json.loads(result.stdout)
        assert said["added"] == ["sorter"] and list(said["failed"]) == ["twin"]

    def test_a_folder_without_adapters_is_an_error(self, stack, tmp_path):
        (tmp_path / "empty").mkdir()

        result = run("add-pool", str(tmp_path / "empty"))

        assert isinstance(result.exception, HiloraError) and result.exception.code == "no_adapters"
