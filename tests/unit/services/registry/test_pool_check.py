"""A new adapter is compared with the pool: equal ones and odd ones are remarked on, and served all the same."""

from __future__ import annotations

import json

import pytest
import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from services.registry.job import SourceKind
from tests.builders.adapters import peft_config, peft_tensors, random_adapter
from tests.builders.archives import adapter_files, config_bytes, samples_bytes, weights_bytes
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def registered(stack, name, *, squeeze=None, **changes) -> dict:
    """Upload, ingest, and the job's view."""
    async with stack.client() as client:
        fields = {"name": name} | ({"squeeze": json.dumps(squeeze)} if squeeze else {})
        files = [("files", item) for item in adapter_files(**changes).items()]
        answer = await client.post("/v1/adapters", data=fields, files=files)
        assert answer.status_code == 202, answer.text
        await stack.work()
        return (await client.get(answer.headers["Location"])).json()


def codes(job: dict) -> set[str]:
    return {finding["code"] for finding in job["report"]["findings"]}


def in_another_basis(adapter: LoRAAdapter) -> LoRAAdapter:
    mix = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 3.0]])
    return LoRAAdapter(
        base_model=None,
        modules={
            path: LoRAFactors(lora_a=torch.linalg.solve(mix, f.lora_a), lora_b=f.lora_b @ mix, scaling=f.scaling)
            for path, f in adapter.modules.items()
        },
    )


class TestDuplicates:
    async def test_the_same_files_under_another_name(self, stack):
        await registered(stack, "first")
        job = await registered(stack, "second")
        assert job["state"] == "READY"
        (finding,) = [item for item in job["report"]["findings"] if item["code"] == "duplicate_content"]
        assert "first" in finding["message"]
        assert finding["severity"] == "warning"

    async def test_the_same_update_in_another_basis(self, stack):
        await registered(stack, "first")
        weights = weights_bytes(tensors=peft_tensors(in_another_basis(random_adapter())))
        job = await registered(stack, "second", weights=weights, samples=samples_bytes("other", "texts"))
        (finding,) = [item for item in job["report"]["findings"] if item["code"] == "duplicate_update"]
        assert "first" in finding["message"]

    async def test_the_same_update_with_its_scaling_elsewhere(self, stack):
        await registered(stack, "first")
        tensors = {
            name: tensor * (2.0 if "lora_B" in name else 1.0) for name, tensor in peft_tensors(random_adapter()).items()
        }
        config = config_bytes(lora_alpha=4)
        job = await registered(stack, "second", config=config, weights=weights_bytes(tensors=tensors))
        assert "duplicate_update" in codes(job)

    async def test_other_updates_and_versions_of_one_name_are_none(self, stack):
        await registered(stack, "first")
        other = await registered(stack, "second", weights=weights_bytes(seed=1))
        assert not codes(other) & {"duplicate_content", "duplicate_update"}
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files(samples=samples_bytes("new", "text")).items()]
            answer = await client.post("/v1/adapters", params={"replace": True}, data={"name": "first"}, files=files)
            await stack.work()
            job = (await client.get(answer.headers["Location"])).json()
        assert job["state"] == "READY"
        assert "duplicate_update" not in codes(job)

    async def test_a_process_that_starts_later_knows_the_pool(self, stack, tmp_path):
        await registered(stack, "first")
        again = RegistryStack(tmp_path)
        assert "duplicate_content" in codes(await registered(again, "second"))


class TestOtherProcesses:
    """Two ingest processes of one pool; each remembers it for half a minute."""

    @pytest.fixture
    async def other(self, stack, tmp_path):
        """A second process, which has read the pool already."""
        process = RegistryStack(tmp_path, index=stack.index)
        await registered(process, "unlike", weights=weights_bytes(seed=7))
        return process

    async def test_the_same_files_that_another_registered_a_moment_ago(self, stack, other):
        await registered(stack, "first")
        job = await registered(other, "second")
        (finding,) = [item for item in job["report"]["findings"] if item["code"] == "duplicate_content"]
        assert "first" in finding["message"]

    async def test_the_same_update_is_in_the_report_of_the_adapter_as_well(self, stack, other):
        await registered(stack, "first")
        weights = weights_bytes(tensors=peft_tensors(in_another_basis(random_adapter())))
        job = await registered(other, "second", weights=weights, samples=samples_bytes("other", "texts"))
        async with stack.client() as client:
            shown = (await client.get("/v1/adapters/second")).json()["report"]
            first = (await client.get("/v1/adapters/first")).json()["report"]
        assert shown == job["report"]
        assert "duplicate_update" in codes(job)
        assert not {item["code"] for item in first["findings"]} & {"duplicate_update", "duplicate_content"}

    async def test_one_that_was_published_between_comparison_and_publication(self, stack, other, monkeypatch):
        publish = other.catalog.publish

        async def overtaken(manifest, **options):
            await registered(stack, "first")
            return await publish(manifest, **options)

        monkeypatch.setattr(other.catalog, "publish", overtaken)
        assert "duplicate_content" in codes(await registered(other, "second"))

    async def test_the_records_are_read_again_only_if_somebody_else_published(self, stack, other, monkeypatch):
        reads = []
        read = other.registrations.all
        monkeypatch.setattr(other.registrations, "all", lambda: reads.append(1) or read())
        await registered(other, "second")
        await registered(other, "third", weights=weights_bytes(seed=8))
        assert reads == []
        await registered(stack, "fourth", weights=weights_bytes(seed=9))
        await registered(other, "fifth", weights=weights_bytes(seed=10))
        assert reads == [1]


class HubOfOneCommit:
    """See `AdapterSource`: every reference means the same files, as a branch and its commit do."""

    def check(self, reference):
        assert reference.startswith("org/x")

    def fetch(self, reference, folder, *, on_progress):
        for name, data in adapter_files().items():
            (folder / name).write_bytes(data)
        on_progress(1, 1)
        return f"org/x@{'c' * 40}"


class TestReferences:
    @pytest.mark.parametrize("samples", [[], ["sort b a"]])
    async def test_a_branch_and_its_commit_are_one_version(self, stack, samples):
        stack.sources[SourceKind.HUB] = HubOfOneCommit()
        async with stack.client() as client:
            for reference in ("org/x", f"org/x@{'c' * 40}"):
                body = {"name": "x", "source": {"hub": reference}, "samples": samples}
                answer = await client.post("/v1/adapters", json=body)
                assert answer.status_code == 202, answer.text
                await stack.work()
                assert (await client.get(answer.headers["Location"])).json()["state"] == "READY"
            (version,) = (await client.get("/v1/adapters/x/versions")).json()["versions"]
        assert len(version["job_ids"]) == 2


class TestNorms:
    async def test_an_update_far_larger_than_the_pool_s_waits_for_approval(self, stack):
        for seed in range(8):
            await registered(stack, f"usual-{seed}", weights=weights_bytes(seed=seed))
        job = await registered(stack, "loud", config=config_bytes(lora_alpha=8000), weights=weights_bytes(seed=9))
        outliers = [item for item in job["report"]["findings"] if item["code"] == "norm_outlier"]
        assert {item["place"] for item in outliers} == {"q_proj", "up_proj", "down_proj"}
        assert job["state"] == "QUARANTINED"
        async with stack.client() as client:
            assert (await client.get("/v1/adapters/loud")).status_code == 404


class TestDoors:
    async def test_an_adapter_shows_its_report_and_what_was_made_of_its_files(self, stack):
        await registered(stack, "small", squeeze={"rank": 2})
        async with stack.client() as client:
            shown = (await client.get("/v1/adapters/small")).json()
        assert shown["lora_rank"] == 2
        assert shown["provenance"]["squeeze"] == {"rank": 2, "energy": None}
        assert 0.0 < shown["provenance"]["energy_kept"] < 1.0
        assert shown["provenance"]["source_format"] == "peft"
        assert {"scaling_used", "squeezed", "few_samples"} <= {item["code"] for item in shown["report"]["findings"]}

    async def test_other_targets_are_other_versions(self, stack):
        await registered(stack, "one", squeeze={"energy": 0.9})
        await registered(stack, "two", squeeze={"rank": 1})
        entries = (await stack.catalog.snapshot()).entries
        assert entries["one"].revision != entries["two"].revision
        assert entries["two"].lora_rank == 1

    async def test_a_refusal_carries_the_whole_report(self, stack):
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files(config=config_bytes(use_dora=True, bias="all")).items()]
            answer = await client.post("/v1/adapters", data={"name": "bad"}, files=files)
        assert answer.status_code == 422
        error = answer.json()["error"]
        listed = [(item["code"], item["severity"]) for item in error["details"]["report"]["findings"]]
        assert error["code"] == listed[0][0]
        assert ("unsupported_bias", "error") in listed
        assert ("unsupported_adapter_feature", "error") in listed
        assert stack.stored() == []

    @pytest.mark.parametrize("option", ["{", "{}", '{"rank": 0}', '{"rank": 2, "energy": 0.5}', '{"energy": 2}'])
    async def test_a_senseless_compression_is_refused(self, stack, option):
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files().items()]
            answer = await client.post("/v1/adapters", data={"name": "bad", "squeeze": option}, files=files)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_squeeze"
        assert stack.stored() == []

    async def test_a_referenced_folder_can_be_compressed_too(self, tmp_path):
        origin = tmp_path / "pool" / "sorter"
        origin.mkdir(parents=True)
        for name, data in adapter_files(config=json.dumps(peft_config()).encode()).items():
            (origin / name).write_bytes(data)
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            body = {"source": {"path": str(origin)}, "squeeze": {"rank": 3}}
            assert (await client.post("/v1/adapters", json=body)).status_code == 202
            await stack.work()
            assert (await client.get("/v1/adapters/sorter")).json()["lora_rank"] == 3
            wrong = await client.post("/v1/adapters", json={**body, "squeeze": {"rank": 3, "energy": 0.5}})
        assert wrong.json()["error"]["code"] == "invalid_request"
