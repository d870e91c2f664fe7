"""Two registries on one Redis and one folder: no lost update, generations that only rise, one answer from both."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.rpc_client import open_channel
from tests.builders.registry_process import TESTBED
from tests.builders.registry_replicas import RegistryReplicas
from tests.fakes.router_stack import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),  # the first test waits for four processes that import torch
]

_TASKS = sorted(folder.name for folder in (TESTBED / "adapters").iterdir())
_Event = registry_pb2.CatalogEvent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(tmp_path_factory):
    processes = RegistryReplicas(tmp_path_factory.mktemp("replicas"))
    await processes.start()
    yield processes
    await processes.stop()


async def everything(replicas, idx):
    """All that a replica says about the catalogue."""
    client = replicas.clients[idx]
    adapters = (await client.get("/v1/adapters")).json()
    names = [adapter["name"] for adapter in adapters["data"]]
    histories = [(await client.get(f"/v1/adapters/{name}/versions")).json() for name in names]
    return adapters, histories, (await client.get("/v1/aliases")).json()


async def history(replicas, name, idx=0):
    return (await replicas.clients[idx].get(f"/v1/adapters/{name}/versions")).json()["versions"]


class Watcher:
    """What one replica's watch stream says, in order."""

    def __init__(self, replicas, idx):
        self._address = f"127.0.0.1:{replicas.settings[idx].rpc_port}"
        self.events = []
        self.generation = 0

    async def __aenter__(self):
        self._channel = open_channel(self._address)
        stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        request = registry_pb2.GetSnapshotRequest(without_samples=True)
        async for chunk in stub.GetSnapshot(request):
            self.generation = chunk.catalog_generation
        self._task = asyncio.create_task(self._watch(stub))
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._channel.close()

    async def reached(self, generation):
        await eventually(
            lambda: bool(self.events) and self.events[-1].catalog_generation >= generation, timeout_seconds=30
        )

    async def _watch(self, stub):
        request = registry_pb2.WatchRequest(after_generation=self.generation, without_samples=True)
        async for event in stub.Watch(request):
            if event.kind != _Event.KIND_HEARTBEAT:
                self.events.append(event)


class TestUploads:
    async def test_the_same_adapter_sent_to_both_at_once_is_one_version(self, replicas):
        answers = await asyncio.gather(*(replicas.upload(number % 2, "same", _TASKS[0]) for number in range(6)))
        assert {answer.status_code for answer in answers} == {202}
        jobs = await asyncio.gather(
            *(replicas.finished((n + 1) % 2, answer.json()["job_id"]) for n, answer in enumerate(answers))
        )

        assert {job["state"] for job in jobs} == {"READY"}
        assert len({job["adapter_id"] for job in jobs}) == 1
        (version,) = await history(replicas, "same")
        assert set(version["job_ids"]) == {answer.json()["job_id"] for answer in answers}

    async def test_of_two_names_for_one_adapter_at_least_one_hears_of_the_other(self, replicas):
        names = ("twin-0", "twin-1")
        answers = await asyncio.gather(*(replicas.upload(n, name, _TASKS[9]) for n, name in enumerate(names)))
        jobs = [await replicas.finished(0, answer.json()["job_id"]) for answer in answers]

        found = [item for job in jobs for item in job["report"]["findings"] if item["code"] == "duplicate_content"]
        assert found
        assert all(any(name in item["message"] for name in names) for item in found)

    async def test_different_adapters_all_arrive_and_both_streams_tell_the_same_story(self, replicas):
        async with Watcher(replicas, 0) as left, Watcher(replicas, 1) as right:
            answers = await asyncio.gather(
                *(replicas.upload(number % 2, f"different-{number}", task) for number, task in enumerate(_TASKS[:8]))
            )
            jobs = await asyncio.gather(*(replicas.finished(0, answer.json()["job_id"]) for answer in answers))
            assert {job["state"] for job in jobs} == {"READY"}
            end = (await replicas.clients[0].get("/v1/adapters")).json()["catalog_generation"]
            await asyncio.gather(left.reached(end), right.reached(end))

        generations = [event.catalog_generation for event in left.events]
        assert generations == list(range(left.generation + 1, end + 1))
        assert [(event.catalog_generation, event.entry.adapter_id) for event in left.events] == [
            (event.catalog_generation, event.entry.adapter_id) for event in right.events
        ]
        assert await everything(replicas, 0) == await everything(replicas, 1)

    async def test_replacements_of_one_name_from_both_sides_are_all_in_its_history(self, replicas):
        answers = await asyncio.gather(
            *(replicas.upload(n % 2, "contested", task, replace="true") for n, task in enumerate(_TASKS[:6]))
        )
        jobs = await asyncio.gather(*(replicas.finished(1, answer.json()["job_id"]) for answer in answers))
        assert {job["state"] for job in jobs} == {"READY"}

        versions = await history(replicas, "contested")

        assert [version["version"] for version in versions] == [1, 2, 3, 4, 5, 6]
        assert {version["adapter_id"] for version in versions} == {job["adapter_id"] for job in jobs}
        assert sum(version["is_current"] for version in versions) == 1

    async def test_without_replace_one_of_two_contents_wins(self, replicas):
        answers = await asyncio.gather(*(replicas.upload(n, "first-come", _TASKS[n]) for n in range(2)))
        jobs = [await replicas.finished(0, answer.json()["job_id"]) for answer in answers if answer.status_code == 202]

        won = [job for job in jobs if job["state"] == "READY"]
        assert len(won) == 1
        assert all(job["error"]["code"] == "adapter_already_registered" for job in jobs if job not in won)
        assert [version["adapter_id"] for version in await history(replicas, "first-come")] == [won[0]["adapter_id"]]


class TestRaces:
    async def test_retire_rollback_and_aliases_from_both_sides_lose_nothing(self, replicas):
        for task in _TASKS[:3]:
            answer = await replicas.upload(0, "raced", task, replace="true")
            assert (await replicas.finished(0, answer.json()["job_id"]))["state"] == "READY"
        before = await history(replicas, "raced")

        async def hammer(idx):
            client, generations = replicas.clients[idx], []
            for number in range(12):
                answers = [
                    await client.post("/v1/adapters/raced/rollback", json={"version": str(1 + (number + idx) % 3)}),
                    await client.put(f"/v1/aliases/alias-{idx}-{number}", json={"target": "raced@1"}),
                    await client.delete("/v1/adapters/raced") if number % 4 == 3 else None,
                ]
                # A name that the other side retired in between is not found: no other refusal.
                assert all(answer.status_code in {200, 404} for answer in answers if answer)
                done = [answer.json() for answer in answers if answer and answer.status_code == 200]
                generations += [item["catalog_generation"] for item in done]
            return generations

        async with Watcher(replicas, 0) as watcher:
            left, right = await asyncio.gather(hammer(0), hammer(1))
            end = (await replicas.clients[1].get("/v1/adapters")).json()["catalog_generation"]
            await watcher.reached(end)

        assert left == sorted(left)
        assert right == sorted(right)
        seen = [event.catalog_generation for event in watcher.events]
        assert seen == sorted(set(seen))
        assert {version["version"] for version in await history(replicas, "raced")} == {1, 2, 3}
        assert [version["job_ids"] for version in await history(replicas, "raced")] == [
            version["job_ids"] for version in before
        ]
        aliases = (await replicas.clients[0].get("/v1/aliases")).json()["data"]
        assert len([item for item in aliases if item["alias"].startswith("alias-")]) == 24
        assert await everything(replicas, 0) == await everything(replicas, 1)

    async def test_one_that_is_killed_in_the_middle_leaves_the_other_right(self, replicas):
        for task in _TASKS[:2]:
            answer = await replicas.upload(0, "surviving", task, replace="true")
            assert (await replicas.finished(0, answer.json()["job_id"]))["state"] == "READY"

        async def hammer():
            for number in range(200):
                await replicas.clients[1].post("/v1/adapters/surviving/rollback", json={"version": str(1 + number % 2)})

        hammering = asyncio.create_task(hammer())
        await asyncio.sleep(0.3)
        replicas.kill_registry(1)
        assert (await asyncio.gather(hammering, return_exceptions=True))[0] is not None
        async with asyncio.timeout(60):
            # The maintenance of the one that lives brings what was cut to its end.
            while True:
                current = [item["adapter_id"] for item in await history(replicas, "surviving") if item["is_current"]]
                shown = (await replicas.clients[0].get("/v1/adapters/surviving")).json()
                if current == [shown["adapter_id"]]:
                    break
                await asyncio.sleep(0.2)
        replicas.start_registry(1)
        await replicas.ready(1)

        assert await everything(replicas, 0) == await everything(replicas, 1)
