"""Adapters that the registry fetches itself, from the request to the catalogue."""

from __future__ import annotations

import fsspec
import pytest

from tests.builders.archives import WEIGHTS, adapter_files, sharded_weights, tar_bytes, zip_bytes, zstd_bytes
from tests.fakes.registry_stack import RegistryStack

PACKED = {
    ".zip": lambda: zip_bytes(adapter_files()),
    ".tar": lambda: tar_bytes(adapter_files()),
    ".tar.gz": lambda: tar_bytes(adapter_files(), compression="gz"),
    ".tgz": lambda: tar_bytes(adapter_files(), compression="gz"),
    ".tar.zst": lambda: zstd_bytes(tar_bytes(adapter_files())),
    ".tzst": lambda: zstd_bytes(tar_bytes(adapter_files())),
}


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def upload(client, name="sorter", *, files=None):
    files = [("files", item) for item in (files or adapter_files()).items()]
    return await client.post("/v1/adapters", data={"name": name}, files=files)


class TestReferences:
    @pytest.mark.parametrize("suffix", PACKED)
    async def test_an_archive_where_the_operator_allows_it(self, tmp_path, suffix):
        archive = tmp_path / "pool" / f"sorter{suffix}"
        archive.parent.mkdir()
        archive.write_bytes(PACKED[suffix]())
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            accepted = await client.post("/v1/adapters", json={"source": {"path": str(archive)}})
            assert accepted.status_code == 202, accepted.text
            await stack.work()
            shown = (await client.get("/v1/adapters/sorter")).json()

        assert shown["provenance"]["source"] == str(archive)

    async def test_shards_in_a_folder_make_the_same_adapter_as_one_file(self, tmp_path):
        folder = tmp_path / "pool" / "sorter"
        folder.mkdir(parents=True)
        files = adapter_files()
        files |= sharded_weights(files.pop(WEIGHTS), num_shards=2)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            await client.post("/v1/adapters", json={"source": {"path": str(folder)}})
            await upload(client, name="whole")
            await stack.work()
            sharded, whole = [(await client.get(f"/v1/adapters/{name}")).json() for name in ("sorter", "whole")]

        assert sharded["revision"] == whole["revision"]

    async def test_shards_can_be_uploaded_one_by_one(self, stack):
        files = adapter_files()
        files |= sharded_weights(files.pop(WEIGHTS), num_shards=3)
        async with stack.client() as client:
            accepted = await upload(client, files=files)
            await stack.work()

        assert (await stack.jobs.get(accepted.json()["job_id"])).state.value == "READY"

    async def test_a_card_waits_beside_the_files(self, stack):
        async with stack.client() as client:
            accepted = await upload(client, files={**adapter_files(), "README.md": b"# Sorts words"})

        folder = stack.staging.files(accepted.json()["job_id"])
        assert (folder / "README.md").read_bytes() == b"# Sorts words"

    async def test_a_folder_of_an_object_store(self, stack):
        store = fsspec.filesystem("memory")
        for name, data in adapter_files().items():
            store.pipe_file(f"/pool/teams/sorter/{name}", data)
        async with stack.client() as client:
            body = {"source": {"object": "memory://pool/teams/sorter"}}
            accepted = await client.post("/v1/adapters", json=body)
            assert accepted.status_code == 202, accepted.text
            await stack.work()
            shown = (await client.get("/v1/adapters/sorter")).json()

        assert shown["provenance"]["source_kind"] == "object"
        assert shown["provenance"]["source"].startswith("memory://pool/teams/sorter@")

    async def test_an_archive_of_a_web_server(self, tmp_path):
        stack = RegistryStack(tmp_path, allowed_hosts=("files.example",))
        async with stack.client() as client:
            body = {"source": {"url": "https://files.example/v1/sorter.tar.gz?signature=secret"}}
            accepted = await client.post("/v1/adapters", json=body)

        assert accepted.status_code == 202, accepted.text
        assert accepted.json()["adapter_name"] == "sorter"
        assert "secret" not in accepted.text
