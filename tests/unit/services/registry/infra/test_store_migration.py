"""Data folders of other versions: the first one is brought up to date, newer ones are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from hilora.adapter import RocBasis
from hilora.errors import InvalidInput
from services.registry.infra import store_migration
from services.registry.infra.store_migration import DataFolder
from services.registry.registration import RegistrationState
from tests.builders.registry_values import a_draft, a_profile
from tests.fakes.registry_stack import RegistryStack


def make_old(data_dir, names):
    """Write a folder as version 1 did; retired names end with `!`."""
    data = DataFolder(data_dir)
    for number, name in enumerate(names):
        manifest = data.artifacts.write(a_draft(seed=number))
        profile = a_profile(seed=number)
        folder = data_dir / "artifacts" / manifest.revision
        (folder / "samples.safetensors").write_bytes(safetensors.numpy.save({"embeddings": profile.embeddings_mE}))
        (folder / "samples.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in profile.texts))
        old = json.loads((folder / "manifest.json").read_text())
        old |= {"format_version": 1, "encoder_id": "hash:1", "embedding_dim": 8}
        old |= {"num_samples": 3, "samples_source": "upload"}
        old["files"] |= {"samples.safetensors": "0" * 64, "samples.jsonl": "0" * 64}
        (folder / "manifest.json").write_text(json.dumps(old))
        pointer = {
            "adapter_name": name.rstrip("!"),
            "revision": manifest.revision,
            "state": "RETIRED" if name.endswith("!") else "READY",
            "catalog_generation": number + 2,
            "created_at": 1.5,
            "job_id": f"{number:032x}",
        }
        (data_dir / "adapters" / f"{pointer['adapter_name']}.json").write_text(json.dumps(pointer))


async def entries(data_dir):
    stack = RegistryStack(data_dir)
    await stack.catalog.reconcile()
    return stack, await stack.catalog.snapshot()


class TestVersionOne:
    async def test_adapters_keep_identity_samples_and_generation(self, tmp_path):
        make_old(tmp_path, ["a", "b", "gone!"])

        DataFolder(tmp_path).prepare()

        stack, snapshot = await entries(tmp_path)
        assert list(snapshot.entries) == ["a", "b"]
        assert snapshot.catalog_generation > 4
        for number, entry in enumerate(snapshot.entries.values()):
            assert (entry.num_samples, entry.encoder_id, entry.created_at) == (3, "hash:1", 1.5)
            embeddings = await stack.catalog.sample_embeddings(entry)
            assert np.array_equal(embeddings, a_profile(seed=number).embeddings_mE)
            (await stack.catalog.open_components(entry.adapter_id, RocBasis.SVD)).close()
        assert stack.registrations.get("gone").state is RegistrationState.RETIRED
        assert stack.registrations.get("a").made_by("0" * 32).version == 1

    async def test_a_migration_that_dies_anywhere_is_completed(self, tmp_path, monkeypatch):
        make_old(tmp_path, ["a", "b"])
        original = store_migration.replace_durably
        for deadly in range(6):
            calls = []

            def dying(path, data, calls=calls, deadly=deadly):
                if len(calls) == deadly:
                    raise KeyboardInterrupt
                calls.append(path)
                original(path, data)

            monkeypatch.setattr(store_migration, "replace_durably", dying)
            try:
                DataFolder(tmp_path).prepare()
            except KeyboardInterrupt:
                continue
            break

        _, snapshot = await entries(tmp_path)
        assert [(name, entry.num_samples) for name, entry in snapshot.entries.items()] == [("a", 3), ("b", 3)]

    def test_the_ingest_process_waits_for_it(self, tmp_path):
        make_old(tmp_path, ["a"])
        with pytest.raises(InvalidInput) as raised:
            DataFolder(tmp_path).wait_until_prepared(timeout_seconds=0)
        assert raised.value.code == "unsupported_store_format"
        DataFolder(tmp_path).prepare()
        DataFolder(tmp_path).wait_until_prepared(timeout_seconds=0)


class TestOthers:
    def test_a_fresh_folder_is_of_this_version(self, tmp_path):
        DataFolder(tmp_path).wait_until_prepared(timeout_seconds=0)
        DataFolder(tmp_path).prepare()
        assert json.loads((tmp_path / "format.json").read_text()) == {"format_version": 2}

    @pytest.mark.parametrize("content", ['{"format_version": 3}', "{", "[]", '{"format_version": "2"}'])
    def test_a_newer_or_unreadable_one_is_refused(self, tmp_path, content):
        (tmp_path / "format.json").write_text(content)
        with pytest.raises(InvalidInput) as raised:
            DataFolder(tmp_path).prepare()
        assert raised.value.code == "unsupported_store_format"
