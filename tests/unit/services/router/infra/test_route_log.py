from __future__ import annotations

import itertools
import json

import pytest

from services.router.infra.route_log import RouteLog
from services.router.observation import GenerationRecord
from services.router.request import GenerationRequest, SamplingParams, TextPrompt
from services.router.routing_options import RoutingOptions


def record(text="some words", request_id="r"):
    request = GenerationRequest(
        request_id=request_id, prompt=TextPrompt(text=text), sampling=SamplingParams(), options=RoutingOptions()
    )
    return GenerationRecord(request=request, started_at=1.0, seconds=0.5, outcome="ok")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "routes.jsonl"


class TestRotation:
    async def test_files_are_turned_over_and_the_oldest_go(self, file):
        log = RouteLog(file, max_bytes=1000, num_kept=2)
        await log.start()
        for number in range(40):
            log.observe(record(request_id=f"r{number}"))
        await log.stop(grace_seconds=1)
        files = sorted(path.name for path in file.parent.iterdir())
        assert files == ["routes.jsonl", "routes.jsonl.1", "routes.jsonl.2"]
        ids = [
            json.loads(line)["request_id"]
            for name in reversed(files)
            for line in (file.parent / name).read_text().splitlines()
        ]
        assert ids == [f"r{number}" for number in range(40 - len(ids), 40)]
        assert all(path.stat().st_size <= 1000 for path in file.parent.iterdir())


class TestSampling:
    async def test_the_share_is_kept(self, file):
        chances = itertools.cycle([0.1, 0.3, 0.5, 0.9])
        log = RouteLog(file, sample_rate=0.5, chance=lambda: next(chances))
        await log.start()
        for _ in range(20):
            log.observe(record())
        await log.stop(grace_seconds=1)
        assert len(file.read_text().splitlines()) == 10


class TestTexts:
    async def test_any_text_can_be_kept(self, file):
        log = RouteLog(file, keeps_texts=True)
        await log.start()
        log.observe(record("line\nbreak \ud800 ü"))
        await log.stop(grace_seconds=1)
        assert json.loads(file.read_text())["text"].startswith("line\nbreak ")

    async def test_a_disk_that_refuses_is_said_once_and_hurts_nobody(self, file, tmp_path):
        log = RouteLog(tmp_path / "folder" / "file")
        await log.start()
        (tmp_path / "folder" / "file").unlink()
        (tmp_path / "folder" / "file").mkdir()
        log.observe(record())
        log.observe(record())
        await log.stop(grace_seconds=1)
        assert log._has_failed
