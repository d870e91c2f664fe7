"""Versions, reviews, access, aliases and added samples, as an operator uses them over REST."""

from __future__ import annotations

import asyncio

import pytest

from hilora.access import AdapterAccess, TrustTier
from hilora.errors import AdapterAlreadyRegistered, Conflict, InvalidInput, UnknownAdapter
from services.registry.registration import RegistrationState, VersionState
from tests.builders.archives import adapter_files, samples_bytes
from tests.builders.registry_values import a_draft, a_profile
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path)
    await stack.catalog.reconcile()
    return stack


@pytest.fixture
async def guarded(tmp_path):
    stack = RegistryStack(tmp_path, holds_new_versions=True)
    await stack.catalog.reconcile()
    return stack


async def publish(stack, name="a", *, seed=0, is_replacement=True, job_id="0" * 32):
    manifest = stack.artifacts.write(a_draft(seed=seed))
    profile = stack.profiles.write(manifest.revision, a_profile(seed=seed))
    return await stack.catalog.publish(
        manifest, adapter_name=name, job_id=job_id, is_replacement=is_replacement, profile=profile
    )


async def approve(stack, name="a", **changes):
    return await stack.lifecycle.review(name, is_approval=True, reviewer="ada", reason="looked at", **changes)


async def shown(stack, name="a"):
    return (await stack.catalog.snapshot()).entries.get(name)


class TestVersions:
    async def test_a_replacement_keeps_the_versions_before_it_nameable_in_one_generation(self, stack):
        first = await publish(stack)
        second = await publish(stack, seed=1)

        entry = await shown(stack)
        assert (entry.version, entry.revision) == (2, second.entry.revision)
        assert [(other.version, other.revision) for other in entry.other_versions] == [(1, first.entry.revision)]
        assert second.catalog_generation == first.catalog_generation + 1

    async def test_content_that_was_current_before_becomes_so_again_under_its_old_number(self, stack):
        await publish(stack)
        await publish(stack, seed=1)
        again = await publish(stack)

        assert again.entry.version == 1
        assert [version.version for version in again.registration.versions] == [1, 2]

    async def test_a_retired_name_goes_on_counting(self, stack):
        await publish(stack)
        await stack.catalog.retire("a")
        assert await shown(stack) is None

        revived = await publish(stack, seed=1, is_replacement=False)

        assert revived.entry.version == 2
        assert revived.registration.state is RegistrationState.READY

    async def test_a_version_without_a_profile_can_be_named(self, stack):
        manifest = stack.artifacts.write(a_draft())
        await stack.catalog.publish(manifest, adapter_name="a", job_id="0" * 32, is_replacement=False)

        assert ((await shown(stack)).num_samples, (await shown(stack)).encoder_id) == (0, "")


class TestRollback:
    async def test_the_name_means_the_version_before(self, stack):
        first = await publish(stack)
        second = await publish(stack, seed=1)

        back = await stack.lifecycle.roll_back("a")

        assert back.entry.revision == first.entry.revision
        assert back.catalog_generation == second.catalog_generation + 1
        assert [other.version for other in back.entry.other_versions] == [2]

    async def test_any_servable_version_can_be_chosen(self, stack):
        for seed in range(3):
            await publish(stack, seed=seed)
        await stack.lifecycle.roll_back("a", selector="1")

        forward = await stack.lifecycle.roll_back("a", selector=stack.registrations.get("a").numbered(3).revision[:12])

        assert forward.entry.version == 3

    async def test_a_retired_name_comes_back(self, stack):
        await publish(stack)
        await stack.catalog.retire("a")

        await stack.lifecycle.roll_back("a", selector="1")

        assert (await shown(stack)).version == 1

    async def test_what_cannot_be_is_refused(self, stack):
        await publish(stack)
        with pytest.raises(Conflict) as raised:
            await stack.lifecycle.roll_back("a")
        assert raised.value.code == "nothing_to_roll_back_to"
        for selector in ("2", "0" * 12, ""):
            with pytest.raises(UnknownAdapter):
                await stack.lifecycle.roll_back("a", selector=selector)
        with pytest.raises(UnknownAdapter):
            await stack.lifecycle.roll_back("b")

    async def test_one_that_was_cut_before_it_was_published_is_mended(self, stack):
        first = await publish(stack)
        await publish(stack, seed=1)
        stack.index.failing_commits = 1
        with pytest.raises(Exception, match="Redis went away"):
            await stack.lifecycle.roll_back("a")

        await stack.catalog.reconcile()

        assert (await shown(stack)).revision == first.entry.revision


class TestQuarantine:
    async def test_a_new_version_is_stored_but_nobody_is_told(self, guarded):
        before = (await guarded.catalog.snapshot()).catalog_generation
        held = await publish(guarded)

        assert held.entry is None
        assert held.registration.state is RegistrationState.QUARANTINED
        assert await guarded.catalog.snapshot() == await guarded.index.read()
        assert (await guarded.catalog.snapshot()).catalog_generation == before
        assert guarded.artifacts.manifest(held.registration.versions[0].revision)

    async def test_the_approved_one_is_published_and_the_decision_kept(self, guarded):
        await publish(guarded)

        approved = await approve(guarded)

        review = approved.registration.versions[0].review
        assert (review.is_approval, review.reviewer, review.reason) == (True, "ada", "looked at")
        assert (await shown(guarded)).version == 1

    async def test_the_version_in_use_stays_until_the_next_is_approved(self, guarded):
        await publish(guarded)
        first = await approve(guarded)
        await publish(guarded, seed=1)
        assert await shown(guarded) == first.entry

        second = await approve(guarded)

        assert second.entry.version == 2

    async def test_a_rejected_one_is_never_served_nor_accepted_again(self, guarded):
        await publish(guarded)
        await guarded.lifecycle.review("a", is_approval=False, reviewer="ada", reason="steals traffic")

        with pytest.raises(Conflict, match="steals traffic") as raised:
            await publish(guarded)
        assert raised.value.code == "adapter_rejected"
        with pytest.raises(Conflict):
            await guarded.lifecycle.roll_back("a", selector="1")
        assert await shown(guarded) is None
        assert (await publish(guarded, seed=1, is_replacement=False)).registration.versions[1].version == 2

    async def test_a_decision_can_be_changed_to_an_approval(self, guarded):
        await publish(guarded)
        await guarded.lifecycle.review("a", is_approval=False, reviewer="ada", reason="")

        await approve(guarded, selector="1")

        assert (await shown(guarded)).version == 1

    async def test_decisions_about_nothing_are_refused(self, guarded):
        with pytest.raises(UnknownAdapter):
            await approve(guarded)
        await publish(guarded)
        with pytest.raises(InvalidInput) as raised:
            await guarded.lifecycle.review("a", is_approval=True, reviewer=" ", reason="")
        assert raised.value.code == "reviewer_required"
        await approve(guarded)
        with pytest.raises(Conflict) as raised:
            await approve(guarded)
        assert raised.value.code == "nothing_to_review"
        with pytest.raises(Conflict) as raised:
            await approve(guarded, selector="1")
        assert raised.value.code == "version_not_reviewable"

    async def test_the_job_of_one_says_so(self, guarded):
        async with guarded.client() as client:
            files = [("files", item) for item in adapter_files().items()]
            job_id = (await client.post("/v1/adapters", data={"name": "a"}, files=files)).json()["job_id"]
            await guarded.work()
            job = (await client.get(f"/v1/jobs/{job_id}")).json()
            waiting = (await client.get("/v1/quarantine")).json()["data"]

        assert (job["state"], job["progress"]) == ("QUARANTINED", 1.0)
        assert job["adapter_id"] == waiting[0]["versions"][0]["adapter_id"]
        assert guarded.stored() == [item for item in guarded.stored() if not item.startswith("incoming")]


class TestAccess:
    async def test_it_is_published_and_holds_for_versions_to_come(self, stack):
        await publish(stack)
        access = AdapterAccess(trust_tier=TrustTier.TRUSTED, visible_to=("acme",))

        changed = await stack.lifecycle.set_access("a", access)
        later = await publish(stack, seed=1)

        assert changed.entry.access == later.entry.access == access

    async def test_the_same_again_publishes_nothing(self, stack):
        first = await publish(stack)

        again = await stack.lifecycle.set_access("a", AdapterAccess())

        assert again.catalog_generation == first.catalog_generation


class TestAliases:
    async def test_an_alias_moves_in_one_generation(self, stack):
        await publish(stack, "blue")
        last = await publish(stack, "green", seed=1)

        first = await stack.lifecycle.put_alias("prod", "blue")
        second = await stack.lifecycle.put_alias("prod", "green@1")

        assert (first, second) == (last.catalog_generation + 1, last.catalog_generation + 2)
        assert (await stack.catalog.snapshot()).aliases == {"prod": "green@1"}

    async def test_a_version_is_kept_by_its_number(self, stack):
        entry = (await publish(stack)).entry
        await stack.lifecycle.put_alias("prod", f"a@{entry.revision[:16]}")
        assert await stack.lifecycle.aliases() == {"prod": "a@1"}

    async def test_it_never_stands_before_a_name(self, stack):
        await publish(stack)
        for alias in ("a", "tiny"):
            with pytest.raises(Conflict) as raised:
                await stack.lifecycle.put_alias(alias, "a")
            assert raised.value.code == "alias_is_a_name"
        for alias in ("auto", "base", "a@1", ""):
            with pytest.raises(InvalidInput):
                await stack.lifecycle.put_alias(alias, "a")

    async def test_a_name_never_takes_an_alias(self, stack):
        await publish(stack)
        await stack.lifecycle.put_alias("prod", "a")

        for attempt in (
            publish(stack, "prod", seed=1),
            stack.catalog.check_name_is_free("prod", source_sha256="", is_replacement=True),
        ):
            with pytest.raises(Conflict) as raised:
                await attempt
            assert raised.value.code == "name_is_an_alias"

    async def test_what_does_not_exist_has_none(self, stack):
        await publish(stack)
        for target in ("b", "a@2"):
            with pytest.raises(UnknownAdapter):
                await stack.lifecycle.put_alias("prod", target)
        with pytest.raises(UnknownAdapter) as raised:
            await stack.lifecycle.delete_alias("prod")
        assert raised.value.code == "unknown_alias"

    async def test_they_outlive_a_loss_of_the_index_and_its_generation_does_too(self, stack):
        await publish(stack)
        await stack.lifecycle.put_alias("prod", "a")
        gone = await stack.lifecycle.delete_alias("prod")
        await stack.lifecycle.put_alias("next", "a")
        await stack.index.lose_everything()

        snapshot = await stack.catalog.snapshot()

        assert snapshot.aliases == {"next": "a"}
        assert snapshot.catalog_generation > gone + 1

    async def test_one_that_was_cut_before_it_was_published_is_mended(self, stack):
        await publish(stack)
        stack.index.failing_commits = 1
        with pytest.raises(Exception, match="Redis went away"):
            await stack.lifecycle.put_alias("prod", "a")
        assert (await stack.catalog.snapshot()).aliases == {}

        await stack.catalog.reconcile()

        assert (await stack.catalog.snapshot()).aliases == {"prod": "a"}


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
        await publish(stack)
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
        await publish(stack)
        with pytest.raises(InvalidInput) as raised:
            await stack.lifecycle.add_samples(
                "a", tuple(f"text {n}" for n in range(999)), encoder=stack.encoder, job_id="0" * 32
            )
        assert raised.value.code == "too_many_samples"

    @pytest.mark.parametrize("body", [{}, {"samples": []}, {"samples": ["x"], "other": 1}, {"samples": [""]}])
    async def test_what_is_no_text_is_refused(self, stack, body):
        await publish(stack)
        async with stack.client() as client:
            assert (await client.post("/v1/adapters/a/samples", json=body)).status_code in {400, 422}
            assert (await client.post("/v1/adapters/b/samples", json={"samples": ["x"]})).status_code == 404
        assert not list(stack.staging.accepted())

    async def test_a_version_uploaded_without_texts_becomes_choosable(self, stack):
        manifest = stack.artifacts.write(a_draft())
        await stack.catalog.publish(manifest, adapter_name="a", job_id="0" * 32, is_replacement=False)
        await stack.lifecycle.add_samples("a", ("now there is one",), encoder=stack.encoder, job_id="1" * 32)

        assert (await stack.catalog.entry("a")).num_samples == 1


class TestOverRest:
    async def test_history_rollback_access_aliases(self, stack):
        await publish(stack)
        await publish(stack, seed=1)
        async with stack.client() as client:
            history = (await client.get("/v1/adapters/a/versions")).json()
            back = (await client.post("/v1/adapters/a/rollback")).json()
            access = {"trust_tier": "trusted", "visible_to": ["b", "a", "a"]}
            await client.put("/v1/adapters/a/access", json=access)
            alias = (await client.put("/v1/aliases/prod", json={"target": "a@2"})).json()
            shown = (await client.get("/v1/adapters/a")).json()
            aliases = (await client.get("/v1/aliases")).json()["data"]
            await client.delete("/v1/aliases/prod")
            refused = await client.put("/v1/adapters/a/access", json={"trust_tier": "high"})

        assert [(item["version"], item["is_current"]) for item in history["versions"]] == [(1, False), (2, True)]
        assert (back["version"], back["state"]) == (1, "READY")
        assert (shown["version"], shown["trust_tier"], shown["visible_to"]) == (1, "trusted", ["a", "b"])
        assert (alias["target"], [item["alias"] for item in aliases]) == ("a@2", ["prod"])
        assert await stack.lifecycle.aliases() == {}
        assert refused.status_code == 400

    async def test_approval_and_rejection_name_who_decided(self, guarded):
        await publish(guarded)
        async with guarded.client() as client:
            nobody = await client.post("/v1/adapters/a/approve", json={})
            rejected = (await client.post("/v1/adapters/a/reject", json={"reviewer": "ada", "reason": "no"})).json()
            history = (await client.get("/v1/adapters/a/versions")).json()

        assert nobody.status_code == 400
        assert rejected["version"] is None
        assert history["versions"][0]["review"]["reviewer"] == "ada"
        assert history["versions"][0]["state"] == VersionState.REJECTED

    async def test_every_route_asks_for_the_key(self, tmp_path):
        stack = RegistryStack(tmp_path / "locked", key="secret")
        async with stack.client() as client:
            for method, path in (
                ("GET", "/v1/adapters/a/versions"),
                ("POST", "/v1/adapters/a/rollback"),
                ("POST", "/v1/adapters/a/approve"),
                ("PUT", "/v1/adapters/a/access"),
                ("POST", "/v1/adapters/a/samples"),
                ("PUT", "/v1/aliases/x"),
                ("DELETE", "/v1/aliases/x"),
                ("POST", "/v1/collections"),
            ):
                assert (await client.request(method, path)).status_code == 401, path


class TestConflicts:
    async def test_other_content_needs_a_replacement_also_in_quarantine(self, guarded):
        await publish(guarded)
        with pytest.raises(AdapterAlreadyRegistered):
            await publish(guarded, seed=1, is_replacement=False)

    async def test_samples_alone_make_other_content(self, stack):
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files().items()]
            await client.post("/v1/adapters", data={"name": "a"}, files=files)
            await stack.work()
            other = adapter_files(samples=samples_bytes("quite", "other", "texts"))
            answer = await client.post("/v1/adapters", data={"name": "a"}, files=[("files", i) for i in other.items()])

        assert answer.status_code == 409
