"""More sample texts for an adapter that is registered: another profile of the same version."""

from __future__ import annotations

import asyncio

import pytest

from hilora.errors import InvalidInput
from tests.builders.archives import adapter_files
from tests.builders.registry_values import a_draft
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path)
    await stack.catalog.reconcile()
    return stack


class TestSamples:
    async def ingest(self, stack, client):
        files = [("files", item) for item in adapter_files().items()]
        await client.post("/v1/adapters", data={"name": "a"}, files=files)
        await stack.work()

    async def test_more_of_them_make_a_new_profile_of_the_same_version(self, stack):
        async with stack.client() as client:
            await self.ingest(stack, client)
            before = await stack.catalog.entry("a")
            answer = await client.post("/v1/adapters/a/samples", json={"samples": ["a new one", "another"]})
            assert answer.status_code == 202
            await stack.work()
            job = (await client.get(answer.headers["Location"])).json()

        after = await stack.catalog.entry("a")
        assert job["state"] == "READY"
        assert (after.revision, after.version) == (before.revision, before.version)
        assert after.profile_id != before.profile_id
        assert after.num_samples == before.num_samples + 2
        assert after.catalog_generation == before.catalog_generation + 1
        assert stack.profiles.texts(after.revision, after.profile_id)[-2:] == ("a new one", "another")

    async def test_known_texts_change_nothing(self, stack):
        async with stack.client() as client:
            await self.ingest(stack, client)
            before = await stack.catalog.entry("a")
            texts = list(stack.profiles.texts(before.revision, before.profile_id))
            await client.post("/v1/adapters/a/samples", json={"samples": texts})
            await stack.work()

        assert (await stack.catalog.entry("a")).num_samples == before.num_samples

    async def test_two_additions_at_once_are_both_kept(self, stack):
        await stack.publish()
        await asyncio.gather(
            *(
                stack.lifecycle.add_samples("a", (f"text {n}",), encoder=stack.encoder, job_id=f"{n:032x}")
                for n in range(3)
            )
        )

        entry = await stack.catalog.entry("a")
        assert set(stack.profiles.texts(entry.revision, entry.profile_id)) == {
            "one",
            "zwei",
            "三",
            *(f"text {n}" for n in range(3)),
        }

    async def test_too_many_are_refused(self, stack):
        await stack.publish()
        with pytest.raises(InvalidInput) as raised:
            await stack.lifecycle.add_samples(
                "a", tuple(f"text {n}" for n in range(999)), encoder=stack.encoder, job_id="0" * 32
            )
        assert raised.value.code == "too_many_samples"

    @pytest.mark.parametrize("body", [{}, {"samples": []}, {"samples": ["x"], "other": 1}, {"samples": [""]}])
    async def test_what_is_no_text_is_refused(self, stack, body):
        await stack.publish()
        async with stack.client() as client:
            assert (await client.post("/v1/adapters/a/samples", json=body)).status_code in {400, 422}
            assert (await client.post("/v1/adapters/b/samples", json={"samples": ["x"]})).status_code == 404
        assert not list(stack.staging.accepted())

    async def test_a_version_uploaded_without_texts_becomes_choosable(self, stack):
        manifest = stack.artifacts.write(a_draft())
        await stack.catalog.publish(manifest, adapter_name="a", job_id="0" * 32, is_replacement=False)
        await stack.lifecycle.add_samples("a", ("now there is one",), encoder=stack.encoder, job_id="1" * 32)

        assert (await stack.catalog.entry("a")).num_samples == 1
