from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from hilora.errors import GenerationFailed, InvalidInput, Unavailable
from hilora_lab.evaluation.served import find_base_model, run_served_evaluation
from hilora_lab.testbed.folder import TaskLine, Testbed

MODELS = {"data": [{"id": "auto"}, {"id": "tiny-base", "parent": None}, {"id": "copy-letters", "parent": "tiny-base"}]}


@pytest.fixture
def testbed(tmp_path):
    (tmp_path / "adapters" / "copy-letters").mkdir(parents=True)
    shared = {"domain": "letters", "split": "test"}
    lines = [
        TaskLine(task="copy-letters", family="copy", prompt=f"copy : {symbol} =", answer=symbol, **shared)
        for symbol in "abcd"
    ]
    lines.append(TaskLine(task="ends-letters", family="ends", prompt="ends : a b =", answer="a b", **shared))
    return Testbed(folder=tmp_path, lines=tuple(lines))


class Server:
    """A router that knows `copy`: with its adapter it answers, without it answers the letters a and b alone."""

    def __init__(self):
        self.bodies = []
        self.failure = None

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=MODELS)
        body = json.loads(request.content)
        self.bodies.append(body)
        if self.failure is not None:
            return self.failure
        payload = body["prompt"].split(" : ")[1].removesuffix(" =")
        excluded = body.get("hilora", {}).get("exclude_adapters", [])
        has_adapter = body["model"] in {"auto", "copy-letters"} and not excluded
        knows = has_adapter or (excluded and payload in {"a", "b"})
        return httpx.Response(200, json={"choices": [{"text": f" {payload} " if knows else "?"}]})


@pytest.fixture
def server():
    return Server()


def run(server, testbed, **options):
    transport = httpx.MockTransport(server)
    return run_served_evaluation(url="http://router.test/", testbed=testbed, transport=transport, **options)


class TestScores:
    async def test_the_five_settings(self, server, testbed):
        scores = await run(server, testbed)

        assert scores == {
            "id": {"exact_match": 1.0, "n": 4},
            "ood": {"exact_match": 0.5, "n": 4},
            "unseen": {"exact_match": 1.0, "n": 1},
            "base": {"exact_match": 0.0, "n": 4},
            "oracle": {"exact_match": 1.0, "n": 4},
        }

    async def test_answers_that_overtake_each_other_are_all_counted(self, server, testbed):
        async def slow_at_first(request):
            await asyncio.sleep(0.01 / (1 + len(server.bodies)))
            return server(request)

        scores = await run(slow_at_first, testbed, settings=["id"], concurrency=4)

        assert scores == {"id": {"exact_match": 1.0, "n": 4}}

    async def test_what_is_asked(self, server, testbed):
        await run(server, testbed, limit_per_task=1)

        models = [body["model"] for body in server.bodies]
        assert models == ["auto", "auto", "auto", "tiny-base", "copy-letters"]
        assert [body.get("hilora") for body in server.bodies] == [
            None,
            {"exclude_adapters": ["copy-letters"]},
            None,
            None,
            None,
        ]
        assert all(body["temperature"] == 0 and body["max_tokens"] > 2 for body in server.bodies)

    async def test_progress_counts_every_answer(self, server, testbed):
        seen = []

        await run(server, testbed, settings=["id"], on_progress=lambda *event: seen.append(event))

        assert seen == [("id", done, 4) for done in (1, 2, 3, 4)]

    async def test_a_split_without_lines_scores_nothing(self, server, testbed):
        scores = await run(server, testbed, split="dev", settings=["id"])

        assert scores == {"id": {"exact_match": 0.0, "n": 0}}


class TestFailures:
    async def test_a_refusal_is_raised_with_the_servers_words(self, server, testbed):
        server.failure = httpx.Response(404, json={"error": {"message": "no model of that name"}})

        with pytest.raises(InvalidInput, match="no model of that name") as caught:
            await run(server, testbed)

        assert caught.value.code == "request_refused"

    async def test_a_server_error_is_not_a_wrong_answer(self, server, testbed):
        server.failure = httpx.Response(503, text="all workers are away")

        with pytest.raises(GenerationFailed, match="all workers are away"):
            await run(server, testbed)

    @pytest.mark.parametrize("content", [b"<html>", b'{"choices": []}', b'{"choices": null}'])
    async def test_a_reply_that_is_no_completion(self, server, testbed, content):
        server.failure = httpx.Response(200, content=content)

        with pytest.raises(GenerationFailed) as caught:
            await run(server, testbed)

        assert caught.value.code == "request_failed"

    async def test_nobody_there(self, testbed):
        def refuse(request):
            raise httpx.ConnectError("connection refused", request=request)

        with pytest.raises(Unavailable, match="connection refused") as caught:
            await run(refuse, testbed)

        assert caught.value.code == "server_unreachable"

    @pytest.mark.parametrize("entries", [[], [{"id": "auto"}], [{"id": "x"}, {"id": "y"}]])
    async def test_a_listing_without_exactly_one_base(self, entries):
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": entries}))

        async with httpx.AsyncClient(base_url="http://router.test", transport=transport) as client:
            with pytest.raises(InvalidInput) as caught:
                await find_base_model(client)

        assert caught.value.code == "no_base_model"
