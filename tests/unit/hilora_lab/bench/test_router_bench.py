from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hilora.errors import InvalidInput
from hilora_lab.bench.router_backend import ANSWER_WORD
from hilora_lab.bench.router_bench import GOALS, added_latency, judged
from hilora_lab.bench.router_feed import synthetic_samples
from hilora_lab.bench.router_load import LoadOrder, run_load
from hilora_lab.bench.router_memory import describe_growth
from hilora_lab.bench.router_peer import find_peer
from hilora_lab.bench.router_score import measure_scoring
from hilora_lab.bench.router_texts import task_text

ROOT = Path(__file__).resolve().parents[4]
SECTION = (ROOT / "docs" / "benchmarks.md").read_text().partition("## The router")[2].partition("\n## ")[0]


class TestTexts:
    def test_no_two_are_equal(self):
        texts = [task_text(task, number) for task in range(0, 1000, 7) for number in range(20)]

        assert len(set(texts)) == len(texts)
        assert task_text(3, 4) == task_text(3, 4)

    def test_the_answer_s_word_stands_in_none(self):
        assert not any(ANSWER_WORD.strip() in task_text(task, 1) for task in range(1000))


class TestSamples:
    def test_they_are_unit_vectors_around_their_own_centre(self):
        centers = np.eye(8, 64, dtype=np.float32)
        samples = synthetic_samples(centers)

        assert np.allclose(np.linalg.norm(samples, axis=-1), 1.0, atol=1e-5)
        assert (np.einsum("lme,ke->lmk", samples, centers).argmax(axis=-1) == np.arange(8)[:, None]).all()


class TestAddedLatency:
    def test_it_is_what_a_target_takes_beyond_the_backend_s_median(self):
        direct = {"ttfts": [0.1, 0.1, 0.2], "e2es": [1.0, 1.0, 1.0]}
        router = {"ttfts": [0.11, 0.112, 0.15], "e2es": [1.02, 1.02, 1.02]}

        added = added_latency({"direct": direct, "router": router}, "router")

        assert added == {"p50": 12.0, "p99": 49.24, "e2e_p50": 20.0, "e2e_p99": 20.0}

    def test_without_answers_there_is_none(self):
        direct = {"ttfts": [0.1], "e2es": [1.0]}

        assert added_latency({"direct": direct}, "peer") is None
        assert added_latency({"direct": direct, "router": {"ttfts": [], "e2es": []}}, "router") is None


def figures(**changes):
    return {
        "added_latency_ms_p50": {"1": 10.0, "32": 15.0, "256": 900.0},
        "added_latency_ms_p99": {"1": 10.0, "32": 61.0, "256": 900.0},
        "peer_added_latency_ms_p50": {"peer": "x 1", "1": 20.0, "32": 31.0, "256": 1800.0},
        "score_10k_ms": 0.5,
        "requests_per_second_cached": 299.0,
        "memory_bytes_per_request": -3.0,
        **changes,
    }


class TestGoals:
    def test_latencies_are_judged_at_32_streams_and_the_peer_at_all(self):
        assert judged(figures()) == {
            "added_latency_ms_p50": True,
            "added_latency_ms_p99": False,
            "score_10k_ms": True,
            "requests_per_second_cached": False,
            "memory_bytes_per_request": True,
            "peer_ratio": True,
        }
        slower = figures(peer_added_latency_ms_p50={"peer": "x 1", "1": 19.0, "32": 31.0, "256": 1800.0})
        assert judged(slower)["peer_ratio"] is False

    def test_what_was_not_measured_is_not_judged(self):
        alone = {"peer": None, "reason": "none", "1": None, "32": None, "256": None}

        assert judged(figures(peer_added_latency_ms_p50=alone))["peer_ratio"] is None

    def test_the_page_explains_each(self):
        explained = dict(re.findall(r"^\| `(\w+)` \| .* \| ?(.*?) ?\|$", SECTION, re.MULTILINE))

        assert {key: goal for key, goal in explained.items() if goal} == {
            key: f"{sign} {value:g}" for key, (sign, value) in GOALS.items()
        }


class TestGrowth:
    def test_what_is_set_up_at_the_start_is_none(self):
        held = [(count, 1000 + min(count, 300)) for count in range(100, 1100, 100)]

        assert describe_growth(held)["bytes_per_request"] == 0.0

    def test_a_leak_is_its_slope(self):
        grown = describe_growth([(count, 5000 + 7 * count) for count in range(100, 1100, 100)])

        assert grown["bytes_per_request"] == 7.0
        assert grown["num_requests"] == 1000
        assert grown["first_bytes"] == 5700
        assert grown["last_bytes"] == 12000


class TestScoring:
    def test_every_text_is_timed(self):
        milliseconds = measure_scoring(60, num_texts=20)

        assert milliseconds.shape == (20,)
        assert (milliseconds > 0.0).all()


class TestPeer:
    def test_an_interpreter_without_it_is_refused(self, tmp_path):
        with pytest.raises(InvalidInput) as refused:
            find_peer(tmp_path / "python")

        assert refused.value.code == "no_peer"


async def served(answer):
    """A server that gives one answer to every request; its port, and what it was asked."""
    asked: list[dict] = []

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"Content-Length: (\d+)", head)[1])
                asked.append(json.loads(await reader.readexactly(length)))
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1], asked


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ORDER = {"model": "m", "num_streams": 2, "max_tokens": 3, "seconds": 5.0, "max_requests": 8}


class TestLoad:
    async def test_tokens_and_ends_are_found_wherever_the_bytes_are_cut(self):
        server, port, asked = await served([HEAD + b"lor", b"em lorem lo", b"rem 0\r\n", b"0\r\n\r", b"\n"])
        said = await run_load(LoadOrder(port=port, **ORDER))
        server.close()

        assert said["num_answered"] == 8
        assert said["failures"] == {}
        # The first request of each stream opens its connection.
        assert len(said["ttfts"]) == len(said["e2es"]) == 6
        assert all(0.0 < ttft < e2e for ttft, e2e in zip(said["ttfts"], said["e2es"], strict=True))
        assert len({body["messages"][0]["content"] for body in asked}) == 8

    async def test_the_same_texts_come_again_where_that_is_asked(self):
        server, port, asked = await served([HEAD + b"lorem lorem lorem 0\r\n\r\n"])
        await run_load(LoadOrder(port=port, num_texts=2, **ORDER))
        server.close()

        assert len({body["messages"][0]["content"] for body in asked}) == 2

    @pytest.mark.parametrize(
        ("answer", "failure"),
        [
            ([HEAD + b"lorem 0\r\n\r\n"], "1 of 3 tokens"),
            ([b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"], "status 503"),
        ],
    )
    async def test_an_answer_that_is_not_whole_is_a_failure(self, answer, failure):
        server, port, _ = await served(answer)
        said = await run_load(LoadOrder(port=port, **ORDER))
        server.close()

        assert said["num_answered"] == 0
        assert said["failures"] == {failure: 8}
        assert said["ttfts"] == []
