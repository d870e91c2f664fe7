"""An upload much larger than what the process may hold: in a process of its own, whose memory is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
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


class TestMemory:
    def test_it_does_not_grow_with_the_upload(self, tmp_path):
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
