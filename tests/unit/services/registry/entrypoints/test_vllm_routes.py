"""vLLM's two routes as its clients use them."""

from __future__ import annotations

import asyncio

import fsspec
import pytest

from tests.builders.archives import adapter_files, weights_bytes
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
def pool(tmp_path):
    folder = tmp_path / "pool"
    for name, seed in (("sorter", 0), ("other", 7)):
        (folder / name).mkdir(parents=True)
        for file, data in adapter_files(weights=weights_bytes(seed=seed)).items():
            (folder / name / file).write_bytes(data)
    return folder


@pytest.fixture
def stack(tmp_path, pool):
    return RegistryStack(tmp_path / "data", allowed=(pool,))


async def load(stack, *, works=True, **body):
    async with stack.client() as client:
        loading = asyncio.create_task(client.post("/v1/load_lora_adapter", json=body))
        while works and not loading.done():
            await stack.work()
            await asyncio.sleep(0.01)
        return await loading


async def unload(stack, **body):
    async with stack.client() as client:
        return await client.post("/v1/unload_lora_adapter", json=body)


class TestLoad:
    async def test_it_answers_when_the_adapter_can_be_used(self, stack, pool):
        answer = await load(stack, lora_name="sorter", lora_path=str(pool / "sorter"))

        assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sorter' added successfully.")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "sorter" in (await stack.catalog.snapshot()).entries

    async def test_from_an_object_store(self, stack):
        store = fsspec.filesystem("memory")
        for name, data in adapter_files().items():
            store.pipe_file(f"/pool/vllm/sorter/{name}", data)
        answer = await load(stack, lora_name="sorter", lora_path="memory://pool/vllm/sorter")
        missing = await load(stack, lora_name="other", lora_path="memory://pool/vllm/nothing")

        assert (answer.status_code, missing.status_code) == (200, 404)

    async def test_a_web_server_nobody_allowed(self, stack):
        answer = await load(stack, lora_name="sorter", lora_path="https://files.example/sorter.zip")

        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")

    async def test_one_that_waits_for_approval_is_not_said_to_be_loaded(self, tmp_path, pool):
        stack = RegistryStack(tmp_path / "guarded", allowed=(pool,), holds_new_versions=True)
        answer = await load(stack, lora_name="sorter", lora_path=str(pool / "sorter"))

        assert answer.status_code == 503
        assert "is QUARANTINED" in answer.json()["error"]["message"]

    async def test_a_name_that_is_taken(self, stack, pool):
        await load(stack, lora_name="sorter", lora_path=str(pool / "sorter"))
        refused = await load(stack, lora_name="sorter", lora_path=str(pool / "other"))
        before = await stack.catalog.entry("sorter")
        replaced = await load(stack, lora_name="sorter", lora_path=str(pool / "other"), load_inplace=True)

        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (400, "InvalidUserInput", 400)
        assert "has already been loaded" in error["message"]
        assert replaced.status_code == 200
        assert (await stack.catalog.entry("sorter")).revision != before.revision

    @pytest.mark.parametrize("body", [{}, {"lora_name": "a"}, {"lora_path": "/x"}, {"lora_name": "", "lora_path": "x"}])
    async def test_both_fields_are_needed(self, stack, body):
        answer = await load(stack, **body)

        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")

    async def test_a_folder_that_is_not_there(self, stack, pool):
        answer = await load(stack, lora_name="a", lora_path=str(pool / "nothing"))

        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")

    async def test_a_folder_nobody_allowed(self, stack):
        answer = await load(stack, lora_name="a", lora_path="/etc")

        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")

    async def test_what_is_wrong_with_an_adapter_is_said(self, stack, pool):
        (pool / "sorter" / "adapter_model.safetensors").write_bytes(b"nonsense")
        answer = await load(stack, lora_name="a", lora_path=str(pool / "sorter"))

        assert answer.status_code == 400
        assert "safetensors" in answer.json()["error"]["message"]

    async def test_an_ingest_that_takes_too_long_goes_on_and_says_where(self, stack, pool):
        answer = await load(stack, works=False, lora_name="sorter", lora_path=str(pool / "sorter"))
        (job,) = await stack.jobs.all()

        assert answer.status_code == 503
        assert f"/v1/jobs/{job.job_id}" in answer.json()["error"]["message"]
        await stack.work()
        assert "sorter" in (await stack.catalog.snapshot()).entries


class TestUnload:
    async def test_it_is_gone(self, stack, pool):
        await load(stack, lora_name="sorter", lora_path=str(pool / "sorter"))

        answer = await unload(stack, lora_name="sorter", lora_int_id=1)

        assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sorter' removed successfully.")
        assert (await stack.catalog.snapshot()).entries == {}

    async def test_an_unknown_name(self, stack):
        answer = await unload(stack, lora_name="nobody")

        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "The lora adapter 'nobody' cannot be found.",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        }

    async def test_a_name_is_needed(self, stack):
        assert (await unload(stack)).status_code == 400
