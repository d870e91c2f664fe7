from __future__ import annotations

import httpx
import pytest

from services.standalone.front_door import FrontDoor, is_registry_path


def app_named(name):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    return app


@pytest.fixture
async def client():
    door = FrontDoor()
    door.attach(registry_app=app_named("registry"), router_app=app_named("router"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://door") as client:
        yield client


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/adapters",
            "/v1/adapters/sort-digits",
            "/v1/jobs",
            "/v1/jobs/0123",
            "/v1/adapters/",
            "/v1/aliases/nightly",
            "/v1/audit",
            "/v1/collections",
            "/v1/quarantine",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
        ],
    )
    async def test_what_manages_adapters_goes_to_the_registry(self, client, path):
        assert (await client.get(path)).text == "registry"

    @pytest.mark.parametrize(
        "path", ["/", "/v1/models", "/v1/completions", "/v1/adapters-of-mine", "/healthz", "/v1/jobsite", "/V1/jobs"]
    )
    async def test_everything_else_goes_to_the_router(self, client, path):
        assert (await client.get(path)).text == "router"

    async def test_an_encoded_path_is_judged_by_what_it_means(self, client):
        assert (await client.get("/v1/%61dapters/x")).text == "registry"

    def test_the_root_alone_is_not_the_registrys(self):
        assert not is_registry_path("")


class TestFigures:
    async def test_those_of_all_parts_follow_one_another(self):
        async def of_router():
            return b"hilora_router_adapters 1.0\n"

        async def of_worker():
            return b"hilora_worker_slots 2.0\n"

        door = FrontDoor()
        door.attach(registry_app=app_named("registry"), router_app=app_named("router"), figures=[of_router, of_worker])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://door") as client:
            shown = await client.get("/metrics")
            sent = await client.post("/metrics")
        assert shown.text == "hilora_router_adapters 1.0\nhilora_worker_slots 2.0\n"
        assert shown.headers["content-type"].startswith("text/plain")
        assert sent.text == "router"


class TestLifespan:
    async def test_start_and_end_are_acknowledged(self):
        door = FrontDoor()
        incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent = []

        async def receive():
            return incoming.pop(0)

        async def send(message):
            sent.append(message)

        await door({"type": "lifespan"}, receive, send)

        assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


class TestBeforeTheApplicationsAreThere:
    @pytest.fixture
    async def early(self):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=FrontDoor()), base_url="http://door") as client:
            yield client

    async def test_the_process_lives_but_is_not_ready(self, early):
        assert (await early.get("/healthz")).status_code == 200
        assert (await early.get("/readyz")).status_code == 503

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/adapters"])
    async def test_clients_are_told_to_come_back(self, early, path):
        answer = await early.get(path)

        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "starting"
        assert answer.headers["retry-after"] == "2"
