"""Versions, reviews, access, aliases and added samples, as an operator uses them over REST."""

from __future__ import annotations

import pytest

from hilora.access import AdapterAccess, TrustTier
from hilora.errors import AdapterAlreadyRegistered, Conflict, InvalidInput, UnknownAdapter
from services.registry.audit import AuditOutcome
from services.registry.registration import RegistrationState, VersionState
from tests.builders.archives import adapter_files, samples_bytes
from tests.builders.registry_values import a_draft
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


async def approve(stack, name="a", **changes):
    return await stack.lifecycle.review(name, is_approval=True, reviewer="ada", reason="looked at", **changes)


async def shown(stack, name="a"):
    return (await stack.catalog.snapshot()).entries.get(name)


class TestVersions:
    async def test_a_replacement_keeps_the_versions_before_it_nameable_in_one_generation(self, stack):
        first = await stack.publish()
        second = await stack.publish(seed=1)

        entry = await shown(stack)
        assert (entry.version, entry.revision) == (2, second.entry.revision)
        assert [(other.version, other.revision) for other in entry.other_versions] == [(1, first.entry.revision)]
        assert second.catalog_generation == first.catalog_generation + 1

    async def test_content_that_was_current_before_becomes_so_again_under_its_old_number(self, stack):
        await stack.publish()
        await stack.publish(seed=1)
        again = await stack.publish()

        assert again.entry.version == 1
        assert [version.version for version in again.registration.versions] == [1, 2]

    async def test_a_retired_name_goes_on_counting(self, stack):
        await stack.publish()
        await stack.catalog.retire("a")
        assert await shown(stack) is None

        revived = await stack.publish(seed=1, is_replacement=False)

        assert revived.entry.version == 2
        assert revived.registration.state is RegistrationState.READY

    async def test_a_version_without_a_profile_can_be_named(self, stack):
        manifest = stack.artifacts.write(a_draft())
        await stack.catalog.publish(manifest, adapter_name="a", job_id="0" * 32, is_replacement=False)

        assert ((await shown(stack)).num_samples, (await shown(stack)).encoder_id) == (0, "")


class TestRollback:
    async def test_the_name_means_the_version_before(self, stack):
        first = await stack.publish()
        second = await stack.publish(seed=1)

        back = await stack.lifecycle.roll_back("a")

        assert back.entry.revision == first.entry.revision
        assert back.catalog_generation == second.catalog_generation + 1
        assert [other.version for other in back.entry.other_versions] == [2]

    async def test_any_servable_version_can_be_chosen(self, stack):
        for seed in range(3):
            await stack.publish(seed=seed)
        await stack.lifecycle.roll_back("a", selector="1")

        forward = await stack.lifecycle.roll_back("a", selector=stack.registrations.get("a").numbered(3).revision[:12])

        assert forward.entry.version == 3

    async def test_a_retired_name_comes_back(self, stack):
        await stack.publish()
        await stack.catalog.retire("a")

        await stack.lifecycle.roll_back("a", selector="1")

        assert (await shown(stack)).version == 1

    async def test_what_cannot_be_is_refused(self, stack):
        await stack.publish()
        with pytest.raises(Conflict) as raised:
            await stack.lifecycle.roll_back("a")
        assert raised.value.code == "nothing_to_roll_back_to"
        for selector in ("2", "0" * 12, ""):
            with pytest.raises(UnknownAdapter):
                await stack.lifecycle.roll_back("a", selector=selector)
        with pytest.raises(UnknownAdapter):
            await stack.lifecycle.roll_back("b")

    async def test_one_that_was_cut_before_it_was_published_is_mended(self, stack):
        first = await stack.publish()
        await stack.publish(seed=1)
        stack.index.failing_commits = 1
        with pytest.raises(Exception, match="Redis went away"):
            await stack.lifecycle.roll_back("a")

        await stack.catalog.reconcile()

        assert (await shown(stack)).revision == first.entry.revision


class TestQuarantine:
    async def test_a_new_version_is_stored_but_nobody_is_told(self, guarded):
        before = (await guarded.catalog.snapshot()).catalog_generation
        held = await guarded.publish()

        assert held.entry is None
        assert held.registration.state is RegistrationState.QUARANTINED
        assert await guarded.catalog.snapshot() == await guarded.index.read()
        assert (await guarded.catalog.snapshot()).catalog_generation == before
        assert guarded.artifacts.manifest(held.registration.versions[0].revision)

    async def test_the_approved_one_is_published_and_the_decision_kept(self, guarded):
        await guarded.publish()

        approved = await approve(guarded)

        review = approved.registration.versions[0].review
        assert (review.is_approval, review.reviewer, review.reason) == (True, "ada", "looked at")
        assert (await shown(guarded)).version == 1

    async def test_the_version_in_use_stays_until_the_next_is_approved(self, guarded):
        await guarded.publish()
        first = await approve(guarded)
        await guarded.publish(seed=1)
        assert await shown(guarded) == first.entry

        second = await approve(guarded)

        assert second.entry.version == 2

    async def test_a_rejected_one_is_never_served_nor_accepted_again(self, guarded):
        await guarded.publish()
        await guarded.lifecycle.review("a", is_approval=False, reviewer="ada", reason="steals traffic")

        with pytest.raises(Conflict, match="steals traffic") as raised:
            await guarded.publish()
        assert raised.value.code == "adapter_rejected"
        with pytest.raises(Conflict):
            await guarded.lifecycle.roll_back("a", selector="1")
        assert await shown(guarded) is None
        assert (await guarded.publish(seed=1, is_replacement=False)).registration.versions[1].version == 2

    async def test_a_decision_can_be_changed_to_an_approval(self, guarded):
        await guarded.publish()
        await guarded.lifecycle.review("a", is_approval=False, reviewer="ada", reason="")

        await approve(guarded, selector="1")

        assert (await shown(guarded)).version == 1

    async def test_decisions_about_nothing_are_refused(self, guarded):
        with pytest.raises(UnknownAdapter):
            await approve(guarded)
        await guarded.publish()
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
        await stack.publish()
        access = AdapterAccess(trust_tier=TrustTier.TRUSTED, visible_to=("acme",))

        changed = await stack.lifecycle.set_access("a", access)
        later = await stack.publish(seed=1)

        assert changed.entry.access == later.entry.access == access

    async def test_the_same_again_publishes_nothing(self, stack):
        first = await stack.publish()

        again = await stack.lifecycle.set_access("a", AdapterAccess())

        assert again.catalog_generation == first.catalog_generation


class TestTags:
    async def test_they_are_published_sorted_and_hold_for_versions_to_come(self, stack):
        await stack.publish()

        changed = await stack.lifecycle.set_tags("a", ["legal", "lang:de", "legal"])
        later = await stack.publish(seed=1)

        assert changed.entry.tags == later.entry.tags == ("lang:de", "legal")

    @pytest.mark.parametrize("tags", [["Legal"], [""], ["a b"], ["x" * 65], [f"t{number}" for number in range(33)]])
    async def test_words_that_cannot_be_tags_change_nothing(self, stack, tags):
        before = await stack.publish()

        with pytest.raises(InvalidInput) as refusal:
            await stack.lifecycle.set_tags("a", tags)

        assert refusal.value.code == "invalid_tag"
        assert (await shown(stack)).catalog_generation == before.catalog_generation

    async def test_over_rest_they_narrow_the_list_down(self, stack):
        for name in ("a", "b", "c"):
            await stack.publish(name)
        async with stack.client() as client:
            await client.put("/v1/adapters/a/tags", json={"tags": ["legal", "lang:de"]})
            await client.put("/v1/adapters/b/tags", json={"tags": ["legal"]})
            legal = (await client.get("/v1/adapters?tag=legal")).json()["data"]
            both = (await client.get("/v1/adapters?tag=legal&tag=lang:de")).json()["data"]
            refused = await client.put("/v1/adapters/a/tags", json={"tags": ["A"]})

        assert [item["name"] for item in legal] == ["a", "b"]
        assert [(item["name"], item["tags"]) for item in both] == [("a", ["lang:de", "legal"])]
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_tag")


class TestOverRest:
    async def test_history_rollback_access_aliases(self, stack):
        await stack.publish()
        await stack.publish(seed=1)
        async with stack.client() as client:
            history = (await client.get("/v1/adapters/a/versions")).json()
            one = await client.get(f"/v1/adapters/a/versions/{history['versions'][0]['revision'][:10]}")
            none = await client.get("/v1/adapters/a/versions/3")
            back = (await client.post("/v1/adapters/a/rollback")).json()
            access = {"trust_tier": "trusted", "visible_to": ["b", "a", "a"]}
            await client.put("/v1/adapters/a/access", json=access)
            alias = (await client.put("/v1/aliases/prod", json={"target": "a@2"})).json()
            shown = (await client.get("/v1/adapters/a")).json()
            aliases = (await client.get("/v1/aliases")).json()["data"]
            await client.delete("/v1/aliases/prod")
            refused = await client.put("/v1/adapters/a/access", json={"trust_tier": "high"})

        assert [(item["version"], item["is_current"]) for item in history["versions"]] == [(1, False), (2, True)]
        assert (one.json(), none.status_code) == (history["versions"][0], 404)
        assert (back["version"], back["state"]) == (1, "READY")
        assert (shown["version"], shown["trust_tier"], shown["visible_to"]) == (1, "trusted", ["a", "b"])
        assert (alias["target"], [item["alias"] for item in aliases]) == ("a@2", ["prod"])
        assert await stack.lifecycle.aliases() == {}
        assert refused.status_code == 400

    async def test_approval_and_rejection_name_who_decided(self, guarded):
        await guarded.publish()
        async with guarded.client() as client:
            nobody = await client.post("/v1/adapters/a/approve", json={"reviewer": " "})
            rejected = (await client.post("/v1/adapters/a/reject", json={"reviewer": "ada", "reason": "no"})).json()
            history = (await client.get("/v1/adapters/a/versions")).json()

        assert nobody.status_code == 400
        assert rejected["version"] is None
        assert history["versions"][0]["review"]["reviewer"] == "ada"
        assert history["versions"][0]["state"] == VersionState.REJECTED

    async def test_a_decision_is_the_keys_where_nobody_is_named(self, tmp_path):
        stack = RegistryStack(tmp_path / "locked", key="secret", holds_new_versions=True)
        await stack.publish()
        async with stack.client() as client:
            client.headers["Authorization"] = "Bearer secret"
            approved = (await client.post("/v1/adapters/a/approve")).json()
            review = (await client.get("/v1/adapters/a/versions")).json()["versions"][0]["review"]

        assert (approved["version"], review["reviewer"]) == (1, "admin")

    async def test_every_change_has_its_line_in_the_audit_log(self, stack):
        for seed in range(2):
            await stack.publish(seed=seed)
        async with stack.client() as client:
            await client.post("/v1/adapters/a/rollback")
            await client.put("/v1/adapters/a/access", json={"trust_tier": "trusted"})
            await client.put("/v1/aliases/nightly", json={"target": "a"})
            await client.delete("/v1/aliases/nightly")
            await client.post("/v1/adapters/a/approve")
            job_id = (await client.post("/v1/adapters/a/samples", json={"samples": ["one", "two"]})).json()["job_id"]

        lines = [(e.action, e.outcome, e.adapter, e.job_id) for e in stack.audit.page(before=None, limit=9).events]
        assert lines == [
            ("add_samples", AuditOutcome.ACCEPTED, "a", job_id),
            ("approve_adapter", AuditOutcome.REFUSED, "a", None),
            ("delete_alias", AuditOutcome.DONE, "nightly", None),
            ("put_alias", AuditOutcome.DONE, "nightly", None),
            ("set_access", AuditOutcome.DONE, "a", None),
            ("roll_back_adapter", AuditOutcome.DONE, "a", None),
        ]

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
        await guarded.publish()
        with pytest.raises(AdapterAlreadyRegistered):
            await guarded.publish(seed=1, is_replacement=False)

    async def test_samples_alone_make_other_content(self, stack):
        async with stack.client() as client:
            files = [("files", item) for item in adapter_files().items()]
            await client.post("/v1/adapters", data={"name": "a"}, files=files)
            await stack.work()
            other = adapter_files(samples=samples_bytes("quite", "other", "texts"))
            answer = await client.post("/v1/adapters", data={"name": "a"}, files=[("files", i) for i in other.items()])

        assert answer.status_code == 409
