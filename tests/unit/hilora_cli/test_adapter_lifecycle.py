"""`hilora adapters versions`, `rollback`, `approve` and the like against the real REST door, without a socket."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from hilora.errors import Conflict, UnknownAdapter
from hilora_cli import adapters, api_client
from tests.fakes.registry_stack import RegistryStack

KEY = "operator"


@pytest.fixture
def stack_of(tmp_path, monkeypatch):
    """Makes a registry with two versions of `sorter`; every client that a command opens talks to it."""

    def make(**options):
        stack = RegistryStack(tmp_path / "data", key=KEY, **options)
        original = api_client.ApiClient.__init__

        def connected(self, url, *, api_key=None, transport=None):
            original(self, url, api_key=api_key, transport=httpx.ASGITransport(app=stack.app))

        monkeypatch.setattr(api_client.ApiClient, "__init__", connected)

        async def publish():
            for seed in range(2):
                await stack.publish("sorter", seed=seed)

        asyncio.run(publish())
        return stack

    # The server's log would otherwise stand between the lines of the command.
    with structlog.testing.capture_logs():
        yield make


@pytest.fixture
def stack(stack_of):
    return stack_of()


@pytest.fixture
def guarded(stack_of):
    return stack_of(holds_new_versions=True)


def run(*arguments):
    return CliRunner().invoke(adapters.app, list(arguments), env={"HILORA_ADMIN_KEY": KEY, "COLUMNS": "160"})


def answer(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class TestVersions:
    def test_they_are_listed_and_rolled_back(self, stack):
        before = answer("versions", "sorter")["versions"]
        state = answer("rollback", "sorter")
        after = answer("versions", "sorter")["versions"]

        assert [(item["version"], item["is_current"]) for item in before] == [(1, False), (2, True)]
        assert [(item["version"], item["is_current"]) for item in after] == [(1, True), (2, False)]
        assert (state["version"], state["adapter_id"]) == (1, before[0]["adapter_id"])

    def test_a_version_is_named_by_its_number_or_its_revision(self, stack):
        revision = answer("versions", "sorter")["versions"][0]["revision"]

        assert answer("rollback", "sorter", "--version", revision[:8])["version"] == 1
        assert answer("rollback", "sorter", "--version", "2")["version"] == 2

    def test_people_see_a_star_at_the_current_one(self, stack):
        assert "*2" in run("versions", "sorter").stdout
        assert run("rollback", "sorter").stdout.startswith("sorter is version 1, sorter@")

    def test_what_the_server_refuses_is_raised(self, stack):
        assert isinstance(run("versions", "other").exception, UnknownAdapter)
        answer("rollback", "sorter")
        assert isinstance(run("rollback", "sorter").exception, Conflict)


class TestReviews:
    def test_the_newest_that_waits_is_approved_under_the_key_s_name(self, guarded):
        waiting = answer("quarantine")
        state = answer("approve", "sorter", "--reason", "measured")
        review = answer("versions", "sorter")["versions"][1]["review"]

        assert [len(history["versions"]) for history in waiting] == [2]
        assert state["version"] == 2
        assert (review["is_approval"], review["reviewer"], review["reason"]) == (True, "admin", "measured")

    def test_a_rejected_one_is_not_served(self, guarded):
        rejected = run("reject", "sorter", "--version", "1", "--reviewer", "ada", "--reason", "leaks")

        assert rejected.stdout == "rejected; sorter is QUARANTINED\n"
        assert "ada: leaks" in run("versions", "sorter").stdout
        assert run("quarantine").stdout.count("sorter") == 1


class TestAccess:
    def test_what_is_not_named_stays_as_it_is(self, stack):
        answer("access", "sorter", "--visible-to", "a", "--visible-to", "b")
        answer("access", "sorter", "--tier", "trusted")

        assert answer("access", "sorter") == {"name": "sorter", "trust_tier": "trusted", "visible_to": ["a", "b"]}
        assert run("access", "sorter", "--everybody").stdout == "sorter: trusted, visible to everybody\n"
        assert answer("access", "sorter")["visible_to"] == []

    def test_some_and_everybody_exclude_each_other(self, stack):
        assert run("access", "sorter", "--visible-to", "a", "--everybody").exit_code == 2


class TestSamples:
    def test_they_become_a_job(self, stack, tmp_path):
        file = tmp_path / "more.jsonl"
        file.write_text("".join(json.dumps({"text": f"sort these digits: {number}"}) + "\n" for number in range(4)))

        job = answer("samples", "sorter", str(file))
        asyncio.run(stack.work())

        assert (job["adapter_name"], job["state"]) == ("sorter", "PENDING")
        assert [item["state"] for item in answer("jobs")] == ["READY"]


class TestTags:
    def test_they_are_set_shown_filtered_by_and_taken_away(self, stack):
        assert answer("tags", "sorter", "legal", "lang:de")["tags"] == ["lang:de", "legal"]
        assert "lang:de, legal" in run("tags", "sorter").stdout
        assert [entry["name"] for entry in answer("list", "--tag", "legal")] == ["sorter"]
        assert answer("list", "--tag", "other") == []
        assert answer("tags", "sorter", "--clear")["tags"] == []

    def test_all_and_none_exclude_each_other(self, stack):
        assert run("tags", "sorter", "legal", "--clear").exit_code == 2


class TestProfiles:
    def test_one_is_ordered(self, stack):
        job = answer("profile", "sorter")

        assert (job["adapter_name"], job["state"]) == ("sorter", "PENDING")
        assert "sorter PENDING (job " in run("profile", "sorter", "--source", "auto").stdout

    def test_a_source_that_is_off_is_refused_with_the_way_out(self, stack):
        refusal = run("profile", "sorter", "--source", "self_portrait").exception

        assert isinstance(refusal, Conflict)
        assert refusal.code == "profile_source_off"


class TestAliases:
    def test_one_comes_and_goes(self, stack):
        assert run("alias", "nightly", "sorter@1").stdout == "nightly stands for sorter@1\n"
        assert [(item["alias"], item["target"]) for item in answer("alias")] == [("nightly", "sorter@1")]
        assert "nightly" in run("alias").stdout
        assert run("alias", "nightly", "--delete").stdout == "nightly stands for nothing\n"
        assert answer("alias") == []

    @pytest.mark.parametrize("arguments", [("nightly",), ("nightly", "sorter", "--delete"), ("--delete",)])
    def test_half_a_wish_is_misuse(self, stack, arguments):
        assert run("alias", *arguments).exit_code == 2
