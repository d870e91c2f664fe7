"""Event streams of the REST door."""

from __future__ import annotations

import asyncio
import json

import pytest

from hilora.errors import RegistryUnavailable
from services.registry.entrypoints.event_stream import EventStreams, ServerEvent, until
from tests.builders.archives import adapter_files, weights_bytes
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def upload(client, name="sorter", **changes):
    files = [("files", item) for item in adapter_files(**changes).items()]
    return await client.post("/v1/adapters", data={"name": name}, files=files)


def parsed(text):
    """`(event, id, data)` of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


async def read_until(stack, path, enough, *, headers=None, meanwhile=None):
    """The events of an endless stream, once there are enough; then the service stops."""
    chunks = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        chunks.append(message.get("body", b""))
        if enough(parsed(b"".join(chunks).decode())):
            stack.streams.close()

    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())],
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    answering = asyncio.create_task(stack.app(scope, receive, send))
    if meanwhile:
        await meanwhile()
    await asyncio.wait_for(answering, 20)
    return parsed(b"".join(chunks).decode())


class TestJobEvents:
    async def test_every_step_to_the_end_and_then_the_stream_ends(self, stack):
        async with stack.client() as client:
            job_id = (await upload(client)).json()["job_id"]
            following = asyncio.create_task(client.get(f"/v1/jobs/{job_id}/events"))
            await asyncio.sleep(0.05)
            await stack.work()
            answer = await asyncio.wait_for(following, 20)

        events = parsed(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert {event for event, _, _ in events} == {"job"}
        assert (events[0][2]["state"], events[-1][2]["state"]) == ("PENDING", "READY")
        assert [data["progress"] for _, _, data in events] == sorted(data["progress"] for _, _, data in events)

    async def test_an_unknown_job_is_an_error_and_no_stream(self, stack):
        async with stack.client() as client:
            answer = await client.get(f"/v1/jobs/{'0' * 32}/events")

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_job")


class TestCatalogEvents:
    async def test_changes_arrive_as_they_happen(self, stack):
        await stack.catalog.reconcile()

        async def change():
            async with stack.client() as client:
                await upload(client)
                await stack.work()
                await client.delete("/v1/adapters/sorter")

        events = await read_until(stack, "/v1/adapters/events", lambda events: len(events) >= 2, meanwhile=change)

        assert [(event, data["name"]) for event, _, data in events] == [("upsert", "sorter"), ("remove", "sorter")]
        assert events[0][2]["adapter"]["adapter_id"].startswith("sorter@")
        assert int(events[1][1]) == int(events[0][1]) + 1

    async def test_last_event_id_goes_on_where_the_client_was(self, stack):
        async with stack.client() as client:
            for name in ("one", "two", "three"):
                await upload(client, name)
            await stack.work()
            first = (await client.get("/v1/adapters/one")).json()["catalog_generation"]

        events = await read_until(
            stack, "/v1/adapters/events", lambda events: len(events) >= 2, headers={"Last-Event-ID": str(first)}
        )

        assert [data["name"] for _, _, data in events] == ["two", "three"]

    async def test_after_a_gap_the_client_is_told_to_list_again(self, stack):
        async with stack.client() as client:
            await upload(client)
            await stack.work()

        events = await read_until(stack, "/v1/adapters/events?after=9999", lambda events: len(events) >= 1)

        assert events[0][0] == "resync"
        assert events[0][2]["catalog_generation"] == (await stack.catalog.snapshot()).catalog_generation

    async def test_a_name_cannot_hide_behind_the_route(self, stack):
        async with stack.client() as client:
            answer = await upload(client, "events")

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_adapter_name")

    async def test_what_is_no_event(self, stack):
        async with stack.client() as client:
            answer = await client.get("/v1/adapters/events", headers={"Last-Event-ID": "x"})

        assert answer.status_code == 400


class TestStreams:
    async def test_a_stop_ends_all_and_closes_what_they_are_made_from(self):
        streams, closed = EventStreams(), []

        async def endless():
            try:
                while True:
                    yield None
                    await asyncio.sleep(0.01)
            finally:
                closed.append(1)

        async def receive():
            await asyncio.Event().wait()

        sent = []

        async def send(message):
            sent.append(message.get("body"))
            if len(sent) == 4:
                streams.close()

        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        await asyncio.wait_for(streams.answer(endless())(scope, receive, send), 10)

        assert b": heartbeat\n\n" in sent
        assert sent[-1] == b""
        assert closed == [1]

    async def test_waiting_for_the_next_item_does_not_outlast_the_end(self):
        closing = asyncio.Event()

        async def silent():
            yield 1
            await asyncio.Event().wait()

        seen = []
        async for item in until(silent(), closing):
            seen.append(item)
            asyncio.get_running_loop().call_later(0.01, closing.set)

        assert seen == [1]

    def test_an_event_is_one_block_whatever_its_text(self):
        encoded = ServerEvent(event="job", event_id="7", data={"detail": "a\nb\r\n\u2028é"}).encode()

        assert len(encoded.decode().splitlines()) == 4
        assert parsed(encoded.decode()) == [("job", "7", {"detail": "a\nb\r\n\u2028é"})]


class TestLists:
    async def test_pages_by_name(self, stack):
        async with stack.client() as client:
            for number, name in enumerate(("a1", "a2", "a3", "b1")):
                await upload(client, name, weights=weights_bytes(seed=number))
            await stack.work()
            first = (await client.get("/v1/adapters?prefix=a&limit=2")).json()
            second = (await client.get(f"/v1/adapters?prefix=a&limit=2&after={first['next_after']}")).json()
            everything = (await client.get("/v1/adapters")).json()

        assert [entry["name"] for entry in first["data"] + second["data"]] == ["a1", "a2", "a3"]
        assert (first["has_more"], second["has_more"], second["next_after"]) == (True, False, None)
        assert len(everything["data"]) == 4

    async def test_jobs_by_state_and_adapter(self, stack):
        async with stack.client() as client:
            await upload(client, "one")
            await stack.work()
            await upload(client, "two")
            ready = (await client.get("/v1/jobs?state=READY")).json()["data"]
            of_two = (await client.get("/v1/jobs?adapter=two")).json()["data"]
            refused = await client.get("/v1/jobs?state=NONSENSE")

        assert [job["adapter_name"] for job in ready] == ["one"]
        assert [job["adapter_name"] for job in of_two] == ["two"]
        assert refused.status_code == 400


class TestMetrics:
    async def test_what_is_stored_is_measured(self, stack):
        await stack.publish("one", seed=1)
        async with stack.client() as client:
            one = (await client.get("/metrics")).text
            await stack.publish("two", seed=2)
            two = (await client.get("/metrics")).text

        folder = stack.data_dir / "artifacts"
        on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert 'hilora_registry_store_items{store="artifacts"} 1.0' in one
        assert 'hilora_registry_store_items{store="profiles"} 2.0' in two
        assert f'hilora_registry_store_bytes{{store="artifacts"}} {float(on_disk)!r}' in two
        assert "hilora_registry_store_free_bytes 1.099511627776e+12" in two

    async def test_durations_of_ingests(self, stack):
        async with stack.client() as client:
            await upload(client, "one")
            await stack.work()
            text = (await client.get("/metrics")).text

        assert 'hilora_registry_ingest_seconds_bucket{le="3600.0"} 1.0' in text
        assert 'hilora_registry_ingest_seconds_bucket{le="+Inf"} 1.0' in text
        assert "hilora_registry_ingest_seconds_count 1.0" in text

    async def test_without_redis_the_rest_is_shown_and_its_absence_said(self, stack, monkeypatch):
        async def away():
            raise RegistryUnavailable("Redis does not answer", code="redis_unavailable")

        async with stack.client() as client:
            before = (await client.get("/metrics")).text
            monkeypatch.setattr(stack.index, "read", away)
            answer = await client.get("/metrics")

        assert "hilora_registry_redis_up 1.0" in before
        assert answer.status_code == 200
        assert "hilora_registry_redis_up 0.0" in answer.text
        assert "hilora_registry_adapters" not in answer.text
        assert "hilora_registry_store_bytes" in answer.text

    async def test_queue_and_outcomes(self, stack):
        async with stack.client() as client:
            await upload(client, "one")
            waiting = (await client.get("/metrics")).text
            await stack.work()
            files = [("files", item) for item in adapter_files(weights=weights_bytes(seed=3)).items()]
            job_id = (await client.post("/v1/adapters", data={"name": "two"}, files=files)).json()["job_id"]
            await client.delete(f"/v1/jobs/{job_id}")
            stack.queue.job_ids.clear()
            text = (await client.get("/metrics")).text

        assert "hilora_registry_ingest_queue_length 1.0" in waiting
        assert "hilora_registry_ingest_queue_age_seconds 0.0\n" not in waiting
        assert "hilora_registry_ingest_queue_age_seconds 0.0\n" in text
        assert 'hilora_registry_ingest_outcomes_total{code="",state="READY"} 1.0' in text
        assert 'hilora_registry_ingest_outcomes_total{code="",state="CANCELLED"} 1.0' in text
