from __future__ import annotations

import json

import httpx
import pytest

from hilora.errors import InvalidInput, Unavailable
from hilora_cli import patience
from hilora_cli.api_client import ApiClient
from hilora_cli.pool_seeding import missing_from, seed, uploads_of, uploads_of_testbed


def write_adapter(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


class TestUploadsOf:
    def test_a_folder_that_is_an_adapter_is_one(self, tmp_path):
        folder = write_adapter(tmp_path / "one")

        assert [upload.name for upload in uploads_of(folder)] == ["one"]

    def test_a_folder_of_adapters_is_all_of_them_and_nothing_else(self, tmp_path):
        for name in ("b", "a"):
            write_adapter(tmp_path / name)
        (tmp_path / "notes").mkdir()

        assert [upload.name for upload in uploads_of(tmp_path)] == ["a", "b"]

    @pytest.mark.parametrize("folder", ["empty", "missing"])
    def test_no_adapter_at_all_is_an_error(self, tmp_path, folder):
        (tmp_path / "empty").mkdir()

        with pytest.raises(InvalidInput) as refusal:
            uploads_of(tmp_path / folder)

        assert refusal.value.code == "no_adapters"

    def test_a_testbeds_samples_are_its_fit_prompts_alone(self, tmp_path):
        write_adapter(tmp_path / "adapters" / "sort")
        lines = [
            {"task": "sort", "split": "fit", "prompt": "sort this"},
            {"task": "sort", "split": "test", "prompt": "a secret"},
            {"task": "copy", "split": "fit", "prompt": "copy this"},
        ]
        (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

        (upload,) = uploads_of_testbed(tmp_path)

        assert upload.name == "sort"
        assert upload.samples == b'{"text": "sort this"}\n'


class TestSeed:
    @staticmethod
    def server(request):
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"name": "old"}]})
        if b"wrong" in request.read():  # no hexadecimal word: the boundary of a multipart body is random
            return httpx.Response(422, json={"error": {"message": "No.", "code": "bad_adapter"}})
        return httpx.Response(202, json={"job_id": "j", "state": "READY", "progress": 1.0, "detail": ""})

    async def test_only_what_is_not_there_is_sent(self, tmp_path):
        for name in ("old", "new"):
            write_adapter(tmp_path / name)
        async with ApiClient("http://server", transport=httpx.MockTransport(self.server)) as client:
            missing = await missing_from(client, uploads_of(tmp_path))

        assert [upload.name for upload in missing] == ["new"]

    async def test_one_refusal_does_not_keep_the_others(self, tmp_path):
        for name in ("wrong", "good-1", "good-2"):
            write_adapter(tmp_path / name)
        done = {}
        async with ApiClient("http://server", transport=httpx.MockTransport(self.server)) as client:
            await seed(client, uploads_of(tmp_path), on_seeded=lambda name, failure: done.update({name: failure}))

        assert done["wrong"].code == "bad_adapter"
        assert done["good-1"] is done["good-2"] is None


class TestPatience:
    """A server that is there and cannot serve yet is asked again; nothing is registered twice."""

    @pytest.fixture(autouse=True)
    def no_pauses(self, monkeypatch):
        monkeypatch.setattr(patience, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))

    @staticmethod
    def away(times):
        """A server that answers 503 a few times to each method, and the idempotency keys it was sent."""
        left, keys = {"GET": times, "POST": times}, []

        def answer(request):
            if request.method == "POST":
                keys.append(request.headers["Idempotency-Key"])
            if left[request.method]:
                left[request.method] -= 1
                return httpx.Response(503, json={"error": {"message": "Redis is away.", "code": "redis_unavailable"}})
            return TestSeed.server(request)

        return answer, keys

    async def test_it_recovers_and_every_attempt_bears_the_same_key(self, tmp_path):
        write_adapter(tmp_path / "new")
        answer, keys = self.away(times=3)
        done = {}
        async with ApiClient("http://server", transport=httpx.MockTransport(answer)) as client:
            missing = await missing_from(client, uploads_of(tmp_path))
            await seed(client, missing, on_seeded=lambda name, failure: done.update({name: failure}))

        assert done == {"new": None}
        assert len(keys) == 4
        assert len(set(keys)) == 1

    async def test_one_that_stays_away_is_told(self, tmp_path):
        write_adapter(tmp_path / "new")
        answer, _ = self.away(times=99)
        done = {}
        async with ApiClient("http://server", transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(Unavailable, match="Redis is away"):
                await missing_from(client, uploads_of(tmp_path))
            await seed(client, uploads_of(tmp_path), on_seeded=lambda name, failure: done.update({name: failure}))

        assert done["new"].code == "redis_unavailable"

    async def test_where_nobody_listens_it_does_not_wait(self):
        num_asked = 0

        def refuse(request):
            nonlocal num_asked
            num_asked += 1
            raise httpx.ConnectError("refused", request=request)

        async with ApiClient("http://server", transport=httpx.MockTransport(refuse)) as client:
            with pytest.raises(Unavailable):
                await missing_from(client, [])
        assert num_asked == 1
