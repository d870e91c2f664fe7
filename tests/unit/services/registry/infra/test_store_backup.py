"""Backups of the registry's folder, and folders made of them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile

import pytest

from hilora.errors import Conflict, HiloraError, InvalidInput
from services.registry.collection import CollectionPolicy
from services.registry.infra.store_backup import write_backup
from services.registry.infra.store_restore import restore_backup
from services.registry.registration import VersionState
from tests.builders.registry_values import a_request
from tests.builders.store_check import accepted_jobs, disk_catalog, store_problems
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def stack(tmp_path):
    """Names with several versions, an alias, a tombstone, an accepted upload, a line of the audit log."""
    stack = RegistryStack(tmp_path / "store", collection=CollectionPolicy(keep_versions=2, grace_seconds=0))
    stack.data.prepare()
    await stack.catalog.reconcile()
    for seed in range(3):
        await stack.publish("poems", seed=seed)
    await stack.publish("sums", seed=10)
    await stack.publish("gone", seed=11)
    await stack.lifecycle.put_alias("nightly", "poems@2")
    async with stack.client() as client:
        assert (await client.delete("/v1/adapters/gone")).status_code == 200
    request = a_request(adapter_name="waiting")
    (stack.staging.create(request.job_id) / "adapter_config.json").write_text("{}")
    stack.staging.accept(request)
    return stack


def backup_of(stack):
    stream = io.BytesIO()
    summary = write_backup(stack.data_dir, stream)
    return stream.getvalue(), summary


def restored(data, folder):
    restore_backup(io.BytesIO(data), folder)
    return RegistryStack(folder)


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def packed(files):
    """A tar file of `(name, data)`, with sums that are right."""
    stream = io.BytesIO()
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files)
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in [*files, ("SHA256SUMS", lines.encode())]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def files_of(data):
    return [(member.name, content) for member, content in members(data) if member.name != "SHA256SUMS"]


class TestRoundTrip:
    async def test_an_empty_system_shows_the_same_catalogue(self, stack, tmp_path):
        data, summary = backup_of(stack)
        copy = restored(data, tmp_path / "copy")
        await copy.catalog.reconcile()

        before, after = await stack.catalog.snapshot(), await copy.catalog.snapshot()

        assert (after.entries, after.aliases) == (before.entries, before.aliases)
        assert after.catalog_generation >= before.catalog_generation
        assert (summary.num_names, summary.num_versions, summary.num_uploads) == (3, 5, 1)

    async def test_every_file_of_the_store_is_there_and_the_same(self, stack, tmp_path):
        data, summary = backup_of(stack)
        copy = restored(data, tmp_path / "copy")

        assert copy.stored() == [name for name in stack.stored() if not name.endswith("/.lock")]
        for name in copy.stored():
            assert (copy.data_dir / name).read_bytes() == (stack.data_dir / name).read_bytes(), name
        assert store_problems(copy.data_dir) == []
        assert summary.num_bytes == sum(member.size for member, _ in members(data))

    async def test_history_waiting_uploads_and_the_audit_log_come_along(self, stack, tmp_path):
        data, _ = backup_of(stack)
        copy = restored(data, tmp_path / "copy")

        assert copy.registrations.get("gone").is_retired
        assert copy.registrations.get("poems") == stack.registrations.get("poems")
        assert accepted_jobs(copy.data_dir) == accepted_jobs(stack.data_dir)
        assert copy.audit.page(before=None, limit=10) == stack.audit.page(before=None, limit=10)
        assert len(copy.audit.page(before=None, limit=10).events) == 1

    async def test_what_was_collected_is_not_missed(self, stack, tmp_path):
        await stack.publish("poems", seed=20)
        await stack.publish("poems", seed=21)
        await stack.collector.collect()
        states = {version.state for version in stack.registrations.get("poems").versions}
        assert VersionState.COLLECTED in states

        data, _ = backup_of(stack)

        assert store_problems(restored(data, tmp_path / "copy").data_dir) == []

    async def test_a_registry_that_was_started_once_is_empty_enough(self, stack, tmp_path):
        data, _ = backup_of(stack)
        started = RegistryStack(tmp_path / "copy")
        started.data.prepare()
        await started.catalog.reconcile()

        assert disk_catalog(restored(data, tmp_path / "copy").data_dir) == disk_catalog(stack.data_dir)


class TestWhileItRuns:
    async def test_a_backup_is_sound_whatever_is_published_meanwhile(self, stack, tmp_path):
        async def publish():
            for seed in range(100, 130):
                await stack.publish(f"name-{seed % 5}", seed=seed)

        publishing = asyncio.create_task(publish())
        taken = []
        while not publishing.done():
            taken.append((await asyncio.to_thread(backup_of, stack))[0])
        await publishing

        assert len(taken) > 1
        names = []
        for number, data in enumerate(taken):
            copy = restored(data, tmp_path / f"copy-{number}")
            assert store_problems(copy.data_dir) == []
            names.append(len(disk_catalog(copy.data_dir).revisions))
        assert names == sorted(names)

    async def test_content_that_is_missing_is_said(self, stack):
        (folder, *_) = (stack.data_dir / "artifacts").glob("[0-9a-f]*")
        for file in folder.iterdir():
            file.unlink()
        with pytest.raises(Conflict) as refusal:
            backup_of(stack)
        assert (refusal.value.code, refusal.value.place) == ("backup_incomplete", f"artifacts/{folder.name}")

    async def test_a_damaged_record_is_kept_as_it_is(self, stack, tmp_path):
        (stack.data_dir / "adapters" / "sums.json").write_text("{damaged")
        data, summary = backup_of(stack)
        copy = restored(data, tmp_path / "copy")
        assert (copy.data_dir / "adapters" / "sums.json").read_text() == "{damaged"
        assert summary.num_names == 2


class TestRefusals:
    def test_a_folder_that_is_no_store(self, tmp_path):
        with pytest.raises(InvalidInput) as refusal:
            write_backup(tmp_path, io.BytesIO())
        assert refusal.value.code == "not_a_store"
        assert list(tmp_path.iterdir()) == []

    async def test_a_store_of_another_version(self, stack):
        (stack.data_dir / "format.json").write_text('{"format_version": 99}')
        with pytest.raises(InvalidInput) as refusal:
            backup_of(stack)
        assert refusal.value.code == "unsupported_store_format"

    async def test_a_folder_that_is_in_use(self, stack):
        data, _ = backup_of(stack)
        before = stack.stored()
        with pytest.raises(Conflict) as refusal:
            restored(data, stack.data_dir)
        assert refusal.value.code == "store_not_empty"
        assert stack.stored() == before

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    async def test_a_backup_that_was_cut_short(self, stack, tmp_path, share):
        data, _ = backup_of(stack)
        self._refused(data[: int(share * len(data))], tmp_path / "copy")

    async def test_one_without_its_sums(self, stack, tmp_path):
        data, _ = backup_of(stack)
        last = max(member.offset for member, _ in members(data))
        self._refused(data[:last] + bytes(1024), tmp_path / "copy")

    async def test_one_that_was_changed(self, stack, tmp_path):
        data, _ = backup_of(stack)
        weights = next(member for member, _ in members(data) if member.name.endswith("rocs_svd.safetensors"))
        spoilt = bytearray(data)
        spoilt[weights.offset_data + weights.size // 2] ^= 1
        self._refused(bytes(spoilt), tmp_path / "copy")

    @pytest.mark.parametrize(
        "name",
        [
            "../outside",
            "/etc/outside",
            "adapters/../../outside",
            "cache/x",
            "adapters",
            "artifacts/../format.json",
            "x",
        ],
    )
    async def test_one_with_a_file_that_does_not_belong_there(self, stack, tmp_path, name):
        data, _ = backup_of(stack)
        self._refused(packed([*files_of(data), (name, b"evil")]), tmp_path / "copy")
        assert not (tmp_path / "outside").exists()

    async def test_one_with_a_link(self, stack, tmp_path):
        data, _ = backup_of(stack)
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in files_of(data)[:1]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("adapters/link.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        self._refused(stream.getvalue(), tmp_path / "copy")

    @pytest.mark.parametrize(
        ("field", "value", "code"),
        [("backup_version", 2, "invalid_backup"), ("format_version", 99, "unsupported_store_format")],
    )
    async def test_one_of_another_version(self, stack, tmp_path, field, value, code):
        (name, description), *rest = files_of(backup_of(stack)[0])
        changed = json.dumps(json.loads(description) | {field: value}).encode()
        with pytest.raises(InvalidInput) as refusal:
            restored(packed([(name, changed), *rest]), tmp_path / "copy")
        assert refusal.value.code == code

    @pytest.mark.parametrize("data", [b"", b"nonsense" * 1000, packed([("adapters/a.json", b"{}")])])
    def test_what_is_no_backup(self, tmp_path, data):
        self._refused(data, tmp_path / "copy")

    @staticmethod
    def _refused(data, folder):
        with pytest.raises(HiloraError) as refusal:
            restore_backup(io.BytesIO(data), folder)
        assert refusal.value.code == "invalid_backup"
        assert list(folder.iterdir()) == []
