"""Archives as the body of a request: streamed to disk, and counted."""

from __future__ import annotations

import pytest

from tests.builders.archives import adapter_files, tar_bytes, zip_bytes, zstd_bytes
from tests.fakes.registry_stack import MAX_UPLOAD_BYTES, RegistryStack

BODIES = {
    "application/zip": lambda: zip_bytes(adapter_files()),
    "application/gzip": lambda: tar_bytes(adapter_files(), compression="gz"),
    "application/zstd": lambda: zstd_bytes(tar_bytes(adapter_files())),
    "application/x-tar": lambda: tar_bytes(adapter_files()),
    "application/octet-stream": lambda: tar_bytes(adapter_files()),
    "Application/ZIP; charset=binary": lambda: zip_bytes(adapter_files()),
}


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def send(stack, content, *, method="PUT", query="?name=sorter", media_type="application/octet-stream"):
    async with stack.client() as client:
        return await client.request(
            method, f"/v1/adapters{query}", content=content, headers={"content-type": media_type}
        )


class TestArchives:
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    @pytest.mark.parametrize("media_type", BODIES)
    async def test_every_kind_becomes_an_adapter(self, stack, media_type, method):
        accepted = await send(stack, BODIES[media_type](), method=method, media_type=media_type)
        await stack.work()

        assert accepted.status_code == 202, accepted.text
        job = await stack.jobs.get(accepted.json()["job_id"])
        assert (job.state.value, job.adapter_name) == ("READY", "sorter")

    async def test_the_folder_inside_names_an_adapter_without_a_name(self, stack):
        archive = tar_bytes({f"sorter/{name}": data for name, data in adapter_files().items()})

        accepted = await send(stack, archive, query="")

        assert accepted.json()["adapter_name"] == "sorter"

    async def test_replacing_is_asked_for_in_the_query(self, stack):
        await send(stack, tar_bytes(adapter_files()))
        await stack.work()
        other = tar_bytes({**adapter_files(), "samples.jsonl": b'{"text": "other"}\n'})

        assert (await send(stack, other)).status_code == 409
        assert (await send(stack, other, query="?name=sorter&replace=true")).status_code == 202

    async def test_squeezing_is_asked_for_in_the_query(self, stack):
        await send(stack, tar_bytes(adapter_files()), query="?name=sorter&squeeze=%7B%22rank%22%3A1%7D")
        await stack.work()
        async with stack.client() as client:
            shown = (await client.get("/v1/adapters/sorter")).json()

        assert shown["lora_rank"] == 1
        assert shown["provenance"]["squeeze"] == {"rank": 1, "energy": None}

    async def test_an_idempotency_key_counts_for_bodies_that_are_archives(self, stack):
        archive = tar_bytes(adapter_files())
        headers = {"content-type": "application/x-tar", "Idempotency-Key": "k"}
        async with stack.client() as client:
            first, second = [
                await client.put("/v1/adapters?name=sorter", content=archive, headers=headers) for _ in range(2)
            ]
            other = await client.put("/v1/adapters?name=other", content=archive, headers=headers)

        assert first.json()["job_id"] == second.json()["job_id"]
        assert other.json()["error"]["code"] == "idempotency_conflict"


class TestRefusals:
    async def refused(self, stack, content, *, status, code, **options):
        answer = await send(stack, content, **options)

        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.json()["error"]["remedy"]
        assert stack.stored() == []
        assert list((stack.data_dir / "incoming").iterdir()) == []

    async def test_a_body_above_the_limit(self, stack):
        await self.refused(stack, bytes(MAX_UPLOAD_BYTES + 1), status=413, code="upload_too_large")

    async def test_a_body_above_the_limit_that_hides_its_length(self, stack):
        async def body():
            for _ in range(5):
                yield bytes(1024 * 1024)

        await self.refused(stack, body(), status=413, code="upload_too_large")

    async def test_an_empty_body(self, stack):
        await self.refused(stack, b"", status=400, code="malformed_upload")

    async def test_a_body_that_is_no_archive(self, stack):
        await self.refused(stack, b"hello" * 1000, status=422, code="unreadable_archive")

    async def test_a_squeeze_that_cannot_be_read(self, stack):
        await self.refused(
            stack, tar_bytes(adapter_files()), status=400, code="invalid_squeeze", query="?name=sorter&squeeze=small"
        )

    async def test_an_archive_without_any_name(self, stack):
        await self.refused(stack, tar_bytes(adapter_files()), status=400, code="name_required", query="")

    async def test_a_bad_name(self, stack):
        await self.refused(
            stack, tar_bytes(adapter_files()), status=400, code="invalid_adapter_name", query="?name=..%2Fevil"
        )
