"""The REST door as a client sees it."""

from __future__ import annotations

import json

import pytest

from tests.builders.archives import (
    adapter_files,
    config_bytes,
    samples_bytes,
    tar_bytes,
    weights_bytes,
    zip_bytes,
)
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


def as_files(files):
    return [("files", item) for item in files.items()]


async def upload(client, name="sorter", *, files=None, **form):
    return await client.post("/v1/adapters", data={"name": name, **form}, files=as_files(files or adapter_files()))


class TestUpload:
    async def test_files_become_a_job_and_the_job_an_adapter(self, stack):
        async with stack.client() as client:
            accepted = await upload(client)
            job = accepted.json()

            assert accepted.status_code == 202
            assert accepted.headers["Location"] == f"/v1/jobs/{job['job_id']}"
            assert (job["state"], job["progress"], job["adapter_name"]) == ("PENDING", 0.0, "sorter")
            assert (await client.get("/v1/adapters")).json()["data"] == []

            await stack.work()

            done = (await client.get(accepted.headers["Location"])).json()
            assert (done["state"], done["progress"], done["error"]) == ("READY", 1.0, None)
            (listed,) = (await client.get("/v1/adapters")).json()["data"]
            assert listed["adapter_id"] == done["adapter_id"] == f"sorter@{listed['revision'][:12]}"
            assert (listed["lora_rank"], listed["num_modules"], listed["num_samples"]) == (4, 3, 2)
        states = [state for job_id, state in stack.jobs.history if job_id == job["job_id"]]
        assert states == ["PENDING", "FETCHING", "VALIDATING", "DECOMPOSING", "PROFILING", "READY"]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("sorter.zip", zip_bytes(adapter_files())),
            ("x.zip", zip_bytes({f"sorter/{name}": data for name, data in adapter_files().items()})),
            ("sorter.tar", tar_bytes({f"./{name}": data for name, data in adapter_files().items()})),
            ("sorter.tar.gz", tar_bytes(adapter_files(), compression="gz")),
            ("sorter.zip", zip_bytes({**adapter_files(), "README.md": b"# hi", "__MACOSX/._a.bin": b"junk"})),
        ],
    )
    async def test_an_archive_names_its_adapter(self, stack, name, content):
        async with stack.client() as client:
            accepted = await client.post("/v1/adapters", files={"archive": (name, content)})
            assert accepted.status_code == 202, accepted.text
            await stack.work()

            shown = (await client.get("/v1/adapters/sorter")).json()

        assert shown["samples_source"] == "bundled"
        assert shown["provenance"]["source"] == name

    @pytest.mark.parametrize(
        "files",
        [
            [(f"part{number}", item) for number, item in enumerate(adapter_files().items())],
            [("file", ("sorter.zip", zip_bytes(adapter_files())))],
        ],
    )
    async def test_a_file_is_known_by_its_own_name_whatever_its_field(self, stack, files):
        async with stack.client() as client:
            accepted = await client.post("/v1/adapters", data={"name": "sorter"}, files=files)
            assert accepted.status_code == 202, accepted.text
            await stack.work()

            assert (await client.get("/v1/adapters/sorter")).status_code == 200

    async def test_the_base_s_own_name_is_refused(self, stack):
        async with stack.client() as client:
            refused = await upload(client, name=stack.base.name)

        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_adapter_name"

    async def test_samples_beside_an_archive_win_over_those_inside(self, stack):
        files = {
            "archive": ("a.zip", zip_bytes(adapter_files())),
            "samples": ("mine.jsonl", samples_bytes("one", "two", "three")),
        }
        async with stack.client() as client:
            await client.post("/v1/adapters", data={"name": "sorter"}, files=files)
            await stack.work()
            shown = (await client.get("/v1/adapters/sorter")).json()

        assert (shown["num_samples"], shown["samples_source"]) == (3, "upload")

    async def test_nothing_stays_in_staging_once_it_is_done(self, stack):
        async with stack.client() as client:
            await upload(client)
            await stack.work()

        assert list((stack.data_dir / "incoming").iterdir()) == []


class TestSameName:
    async def test_the_same_content_again_succeeds_and_changes_nothing(self, stack):
        async with stack.client() as client:
            await upload(client)
            await stack.work()
            before = await stack.catalog.snapshot()
            again = await upload(client)
            await stack.work()
            job = (await client.get(again.headers["Location"])).json()

        assert again.status_code == 202
        assert job["state"] == "READY"
        assert await stack.catalog.snapshot() == before

    async def test_other_content_is_a_conflict(self, stack):
        async with stack.client() as client:
            await upload(client)
            await stack.work()
            before = stack.stored()
            answer = await upload(client, files=adapter_files(weights=weights_bytes(seed=7)))

        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "adapter_already_registered"
        assert "replace" in answer.json()["error"]["remedy"]
        assert stack.stored() == before

    @pytest.mark.parametrize("by_query", [True, False])
    async def test_other_content_replaces_on_request(self, stack, by_query):
        async with stack.client() as client:
            await upload(client)
            await stack.work()
            first = (await client.get("/v1/adapters/sorter")).json()
            other = as_files(adapter_files(weights=weights_bytes(seed=7)))
            path = "/v1/adapters?replace=true" if by_query else "/v1/adapters"
            form = {"name": "sorter"} if by_query else {"name": "sorter", "replace": "true"}
            assert (await client.post(path, data=form, files=other)).status_code == 202
            await stack.work()
            second = (await client.get("/v1/adapters/sorter")).json()

        assert second["revision"] != first["revision"]
        assert second["catalog_generation"] > first["catalog_generation"]

    async def test_two_uploads_at_once_the_second_fails_in_its_job(self, stack):
        async with stack.client() as client:
            await upload(client)
            second = await upload(client, files=adapter_files(weights=weights_bytes(seed=7)))
            await stack.work()
            job = (await client.get(second.headers["Location"])).json()

        assert job["state"] == "FAILED"
        assert job["error"]["code"] == "adapter_already_registered"


class TestReferences:
    async def test_a_folder_the_operator_allows(self, tmp_path):
        folder = tmp_path / "pool" / "sorter"
        folder.mkdir(parents=True)
        for name, data in adapter_files().items():
            (folder / name).write_bytes(data)
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            body = {"source": {"path": str(folder)}, "samples": ["mine\n", "and \u2028 mine"]}
            accepted = await client.post("/v1/adapters", json=body)
            assert accepted.status_code == 202, accepted.text
            await stack.work()
            shown = (await client.get("/v1/adapters/sorter")).json()

        assert (shown["num_samples"], shown["samples_source"]) == (2, "upload")
        assert shown["provenance"]["source"] == str(folder)

    async def test_a_link_inside_the_folder_is_not_followed(self, tmp_path):
        folder = tmp_path / "pool" / "sorter"
        folder.mkdir(parents=True)
        (tmp_path / "secret").write_text("secret")
        (folder / "adapter_config.json").symlink_to(tmp_path / "secret")
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            accepted = await client.post("/v1/adapters", json={"source": {"path": str(folder)}})
            await stack.work()
            job = (await client.get(accepted.headers["Location"])).json()

        assert (job["state"], job["error"]["code"]) == ("FAILED", "path_not_allowed")

    async def test_a_folder_with_a_pickle_only(self, tmp_path):
        folder = tmp_path / "pool" / "old"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_bytes(config_bytes())
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
        stack = RegistryStack(tmp_path / "data", allowed=(tmp_path / "pool",))
        async with stack.client() as client:
            accepted = await client.post("/v1/adapters", json={"source": {"path": str(folder)}})
            await stack.work()
            job = (await client.get(accepted.headers["Location"])).json()

        assert (job["state"], job["error"]["code"]) == ("FAILED", "pickle_refused")


class TestRetire:
    async def test_a_retired_adapter_is_gone_and_its_name_free(self, stack):
        async with stack.client() as client:
            await upload(client)
            await stack.work()
            retired = (await client.delete("/v1/adapters/sorter")).json()

            assert retired["state"] == "RETIRED"
            assert (await client.get("/v1/adapters/sorter")).status_code == 404
            assert (await client.delete("/v1/adapters/sorter")).status_code == 404

            await upload(client, files=adapter_files(weights=weights_bytes(seed=7)))
            await stack.work()
            again = (await client.get("/v1/adapters/sorter")).json()
        assert again["catalog_generation"] > retired["catalog_generation"]

    async def test_an_unknown_name(self, stack):
        async with stack.client() as client:
            answer = await client.delete("/v1/adapters/nobody")

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_adapter")


class TestDoor:
    @pytest.mark.parametrize("path", ["/v1/adapters", "/v1/adapters/a", "/v1/jobs", "/v1/jobs/a"])
    async def test_every_admin_route_needs_the_key(self, tmp_path, path):
        async with RegistryStack(tmp_path, key="secret").client() as client:
            without = await client.get(path)
            wrong = await client.get(path, headers={"Authorization": "Bearer other"})
            right = await client.get(path, headers={"Authorization": "Bearer secret"})

        assert without.status_code == wrong.status_code == 401
        assert without.json()["error"]["code"] == "invalid_api_key"
        assert right.status_code in {200, 404}

    async def test_an_upload_without_the_key_writes_nothing(self, tmp_path):
        stack = RegistryStack(tmp_path, key="secret")
        async with stack.client() as client:
            answer = await upload(client)

        assert answer.status_code == 401
        assert stack.stored() == []

    async def test_probes_need_no_key(self, tmp_path):
        async with RegistryStack(tmp_path, key="secret").client() as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).json()["status"] == "ready"

    async def test_metrics_count_adapters_and_outcomes(self, stack):
        async with stack.client() as client:
            await upload(client)
            await upload(client, name="auto")
            await stack.work()
            text = (await client.get("/metrics")).text

        assert "hilora_registry_adapters 1.0" in text
        assert 'hilora_registry_ingest_jobs{state="READY"} 1.0' in text
        assert 'hilora_registry_uploads_total{outcome="accepted"} 1.0' in text
        assert 'hilora_registry_uploads_total{outcome="invalid_request_error"} 1.0' in text

    @pytest.mark.parametrize("job_id", ["x", "0" * 32, "%2e%2e%2fetc"])
    async def test_an_unknown_job(self, stack, job_id):
        async with stack.client() as client:
            answer = await client.get(f"/v1/jobs/{job_id}")

        assert answer.status_code == 404

    async def test_jobs_are_listed_newest_first(self, stack):
        async with stack.client() as client:
            await upload(client, name="one")
            await upload(client, name="two")
            jobs = (await client.get("/v1/jobs")).json()["data"]

        assert [job["adapter_name"] for job in jobs] == ["two", "one"]

    async def test_an_unknown_route_answers_in_the_same_shape(self, stack):
        async with stack.client() as client:
            answer = await client.get("/v1/nothing")

        assert json.loads(answer.text)["error"]["code"] == "unknown_route"
