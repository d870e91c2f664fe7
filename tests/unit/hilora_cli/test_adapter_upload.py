from __future__ import annotations

import json

import httpx
import pytest

from hilora.errors import HiloraError, InvalidInput, Unavailable
from hilora_cli.adapter_upload import AdapterUpload, submit, wait_for_job
from hilora_cli.api_client import ApiClient

JOB = {"job_id": "j", "adapter_name": "a", "state": "PENDING", "progress": 0.0, "detail": "waiting", "error": None}


class Server:
    """Remembers what was sent, answers with a job, and streams some states of it a connection; None is a 503."""

    def __init__(self, *states):
        self.request = None
        self.body = b""
        self._states = list(states)

    def __call__(self, request):
        if request.method == "POST":
            self.request, self.body = request, request.read()
            return httpx.Response(202, json=JOB)
        assert request.url.path == "/v1/jobs/j/events"
        states = self._states.pop(0)
        if states is None:
            return httpx.Response(503, json={"error": {"message": "starting", "code": "starting"}})
        events = (f"event: job\nid: 1\ndata: {json.dumps({**JOB, **state})}\n\n" for state in states)
        return httpx.Response(200, text=": heartbeat\n\n".join(["", *events]))

    def client(self):
        return ApiClient("http://server", transport=httpx.MockTransport(self))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b"CONFIG")
    (folder / "adapter_model.safetensors").write_bytes(b"WEIGHTS")
    return folder


class TestSubmit:
    async def test_a_folder_is_sent_as_files_under_its_own_name(self, folder):
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder), samples=b"SAMPLES", replaces=True))

        assert server.request.url.path == "/v1/adapters"
        for content in (b"my-adapter", b"CONFIG", b"WEIGHTS", b"SAMPLES", b'name="replace"', b"true"):
            assert content in server.body

    async def test_samples_beside_the_files_are_taken_along(self, folder):
        (folder / "samples.jsonl").write_bytes(b"BESIDE")
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder)))

        assert b"BESIDE" in server.body

    async def test_samples_that_are_given_win_over_those_beside(self, folder):
        (folder / "samples.jsonl").write_bytes(b"BESIDE")
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder), samples=b"GIVEN"))

        assert b"GIVEN" in server.body
        assert b"BESIDE" not in server.body

    async def test_shards_go_with_their_index_and_the_card_with_all(self, folder):
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors.index.json").write_bytes(b"INDEX")
        for number in (1, 2):
            (folder / f"adapter_model-0000{number}-of-00002.safetensors").write_bytes(b"SHARD%d" % number)
        (folder / "README.md").write_bytes(b"CARD")
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder)))

        for content in (
            b"INDEX",
            b"SHARD1",
            b"SHARD2",
            b"CARD",
            b'filename="adapter_model-00002-of-00002.safetensors"',
        ):
            assert content in server.body

    async def test_one_file_of_weights_wins_over_shards(self, folder):
        (folder / "adapter_model-00001-of-00001.safetensors").write_bytes(b"SHARD")
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder)))

        assert b"SHARD" not in server.body

    async def test_shards_without_an_index_are_not_sent(self, folder):
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model-00001-of-00001.safetensors")
        server = Server()
        async with server.client() as client:
            with pytest.raises(InvalidInput, match=r"index\.json"):
                await submit(client, AdapterUpload(source=str(folder)))

    @pytest.mark.parametrize("squeeze", [{"rank": 4}, {"energy": 0.9}])
    async def test_a_compression_is_asked_for(self, folder, squeeze):
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder), squeeze=squeeze))

        assert json.dumps(squeeze).encode() in server.body

    async def test_an_archive_leaves_its_name_to_the_server(self, tmp_path):
        (tmp_path / "a.tar.gz").write_bytes(b"ARCHIVE")
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(tmp_path / "a.tar.gz")))

        assert b'name="archive"; filename="a.tar.gz"' in server.body
        assert b'name="name"' not in server.body

    async def test_anything_else_is_a_hub_repository(self):
        server = Server()
        upload = AdapterUpload(source="owner/name@main", name="n", samples=b'{"text": "t"}\n\n{"text": "u"}\n')
        async with server.client() as client:
            await submit(client, upload)

        assert json.loads(server.body) == {
            "name": "n",
            "source": {"hub": "owner/name@main"},
            "samples": ["t", "u"],
            "replace": False,
            "squeeze": None,
        }

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            ("s3://pool/sorter", "object"),
            ("gs://pool/sorter.zip", "object"),
            ("https://files.example/sorter.tar.gz", "url"),
            ("http://files.example/sorter.zip?token=a", "url"),
        ],
    )
    async def test_an_address_is_fetched_by_the_server(self, source, kind):
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=source))

        assert json.loads(server.body)["source"] == {kind: source}

    async def test_a_folder_without_an_adapter_is_not_sent(self, tmp_path):
        server = Server()
        async with server.client() as client:
            with pytest.raises(InvalidInput) as refusal:
                await submit(client, AdapterUpload(source=str(tmp_path)))

        assert refusal.value.code == "no_adapter_files"
        assert server.request is None

    async def test_a_samples_file_of_another_form_is_refused_with_its_line(self):
        async with Server().client() as client:
            with pytest.raises(InvalidInput, match="Line 2"):
                await submit(client, AdapterUpload(source="owner/name", samples=b'{"text": "t"}\n{"prompt": "u"}\n'))

    async def test_bytes_are_counted_as_they_are_sent(self, folder):
        (folder / "adapter_model.safetensors").write_bytes(b"w" * 300_000)
        seen = []
        async with ApiClient("http://server", transport=httpx.MockTransport(read_and_accept)) as client:
            await submit(
                client,
                AdapterUpload(source=str(folder), samples=b"SAMPLES"),
                on_bytes=lambda sent, total: seen.append((sent, total)),
            )

        total = 300_000 + len(b"CONFIG") + len(b"SAMPLES")
        assert seen[-1] == (total, total)
        assert len(seen) > 4
        assert [sent for sent, _ in seen] == sorted(sent for sent, _ in seen)

    async def test_an_upload_that_is_sent_twice_counts_once(self, folder):
        server = Server()
        async with server.client() as client:
            await submit(client, AdapterUpload(source=str(folder)))

        assert len(server.request.headers["idempotency-key"]) == 32


async def read_and_accept(request):
    await request.aread()
    return httpx.Response(202, json=JOB)


class TestWaitForJob:
    async def test_every_state_is_shown_until_it_is_ready(self):
        seen = []
        server = Server([{"state": "PENDING"}, {"state": "VALIDATING"}, {"state": "READY"}])
        async with server.client() as client:
            job = await wait_for_job(client, JOB, on_job=lambda job: seen.append(job["state"]))

        assert job["state"] == "READY"
        assert seen == ["PENDING", "VALIDATING", "READY"]

    async def test_it_survives_a_server_that_ends_the_stream_and_starts_again(self, monkeypatch):
        monkeypatch.setattr("hilora_cli.adapter_upload._SECONDS_BEFORE_RECONNECTING", 0)
        server = Server([{"state": "FETCHING"}], None, [], [{"state": "READY"}])
        async with server.client() as client:
            assert (await wait_for_job(client, JOB))["state"] == "READY"

    @pytest.mark.parametrize("answer", [None, []], ids=["503", "streams without an event"])
    async def test_a_server_that_stays_away_is_said(self, monkeypatch, answer):
        monkeypatch.setattr("hilora_cli.adapter_upload._SECONDS_BEFORE_RECONNECTING", 0)
        async with Server(*[answer] * 100).client() as client:
            with pytest.raises(Unavailable):
                await wait_for_job(client, JOB)

    async def test_a_failed_one_is_raised_with_its_reason_and_remedy(self):
        error = {"code": "nan_weights", "message": "There is a NaN.", "remedy": "Train again.", "place": "w"}
        async with Server([{"state": "FAILED", "error": error}]).client() as client:
            with pytest.raises(HiloraError) as failure:
                await wait_for_job(client, JOB)

        assert (failure.value.code, failure.value.remedy) == ("nan_weights", "Train again.")

    async def test_a_cancelled_one_is_no_success(self):
        async with Server([{"state": "CANCELLED"}]).client() as client:
            with pytest.raises(HiloraError) as failure:
                await wait_for_job(client, JOB)

        assert failure.value.code == "cancelled"
