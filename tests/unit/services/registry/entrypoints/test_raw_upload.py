"""Archives as the body of a request: streamed to disk, counted, and never held in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.archives import adapter_files, tar_bytes, zip_bytes, zstd_bytes
from tests.fakes.registry_stack import MAX_UPLOAD_BYTES, RegistryStack

ROOT = Path(__file__).resolve().parents[5]
BODIES = {
    "application/zip": lambda: zip_bytes(adapter_files()),
    "application/gzip": lambda: tar_bytes(adapter_files(), compression="gz"),
    "application/zstd": lambda: zstd_bytes(tar_bytes(adapter_files())),
    "application/x-tar": lambda: tar_bytes(adapter_files()),
    "application/octet-stream": lambda: tar_bytes(adapter_files()),
    "Application/ZIP; charset=binary": lambda: zip_bytes(adapter_files()),
}
# Sends a tar of 512 MiB, made on the way, to the application, and says how far the memory of the process grew.
MEMORY_DRIVER = """
import asyncio, dataclasses, json, resource, sys, tarfile, io
from functools import partial
from pathlib import Path
import httpx
from services.registry.entrypoints import rest
from services.registry.infra.archive import ArchiveLimits
from tests.builders.archives import adapter_files
import tests.fakes.registry_stack as stacks

FILLER_BYTES = 512 << 20
stacks.MAX_UPLOAD_BYTES = 1 << 30
stacks.ARCHIVE_LIMITS = ArchiveLimits(max_members=8, max_unpacked_bytes=1 << 30, max_ratio=100)
stack = stacks.RegistryStack(Path(sys.argv[1]))

def header(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()

async def body():
    for name, data in adapter_files().items():
        yield header(name, len(data)) + data + bytes(-len(data) % 512)
    yield header("notes.txt", FILLER_BYTES)
    for _ in range(FILLER_BYTES >> 20):
        yield bytes(1 << 20)
    yield bytes(1024)

async def send():
    async with stack.client() as client:
        await client.get("/healthz")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = await client.put(
            "/v1/adapters?name=sorter", content=body(), headers={"content-type": "application/x-tar"}
        )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"status": answer.status_code, "text": answer.text, "grown_kib": after - before}))

asyncio.run(send())
"""


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

    async def test_memory_does_not_grow_with_the_upload(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_DRIVER, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["status"] == 202, result
        assert result["grown_kib"] < 64 * 1024, result


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

    async def test_an_archive_without_any_name(self, stack):
        await self.refused(stack, tar_bytes(adapter_files()), status=400, code="name_required", query="")

    async def test_a_bad_name(self, stack):
        await self.refused(
            stack, tar_bytes(adapter_files()), status=400, code="invalid_adapter_name", query="?name=..%2Fevil"
        )
