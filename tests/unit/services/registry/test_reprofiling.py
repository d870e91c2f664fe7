"""Another encoder: every version is embedded again, and the catalogue changes over at once."""

from __future__ import annotations

import shutil

import pytest

from tests.builders.registry_values import a_draft
from tests.fakes.registry_stack import RegistryStack
from tests.fakes.router_encoder import HashEncoder


@pytest.fixture
async def old(tmp_path):
    stack = RegistryStack(tmp_path)
    await stack.catalog.reconcile()
    for seed in range(5):
        await publish(stack, f"a{seed}", seed=seed)
    return stack


async def publish(stack, name, *, seed=0):
    manifest = stack.artifacts.write(a_draft(seed=seed))
    await stack.catalog.publish(manifest, adapter_name=name, job_id="0" * 32, is_replacement=True)
    await stack.lifecycle.add_samples(name, (f"text of {name}", "and"), encoder=stack.encoder, job_id="1" * 32)


def with_encoder(old, encoder_id="hash:2"):
    """The same registry, started again with another encoder."""
    return RegistryStack(old.data_dir, index=old.index, encoder=HashEncoder(encoder_id=encoder_id))


async def encoders(stack):
    return {entry.encoder_id for entry in (await stack.catalog.snapshot()).entries.values()}


class TestChangeOver:
    async def test_nothing_is_due_without_a_change(self, old):
        assert not await old.reprofiling.is_due()
        before = await old.catalog.snapshot()
        assert not await old.reprofiling.run()
        assert await old.catalog.snapshot() == before

    async def test_the_catalogue_shows_the_old_profiles_until_all_are_made_and_then_none(self, old):
        before = await old.catalog.snapshot()
        new = with_encoder(old)
        assert await new.reprofiling.is_due()
        seen = []
        while await new.reprofiling.run():
            seen.append(await new.catalog.snapshot())

        after = await new.catalog.snapshot()
        assert len(seen) == 2
        assert all(snapshot == before for snapshot in seen)
        assert await encoders(new) == {"hash:2"}
        assert after.catalog_generation == before.catalog_generation + 1
        assert [entry.revision for entry in after.entries.values()] == [
            entry.revision for entry in before.entries.values()
        ]
        assert not await new.reprofiling.is_due()

    async def test_a_run_that_is_repeated_embeds_nothing_twice(self, old):
        first = with_encoder(old)
        await first.reprofiling.run()
        again = with_encoder(old)
        while await again.reprofiling.run():
            pass

        assert len(first.encoder.batches) + len(again.encoder.batches) == 5

    async def test_a_change_over_that_was_cut_is_completed(self, old):
        new = with_encoder(old)
        while await new.reprofiling.run():
            if len(new.encoder.batches) == 4:
                new.index.put_all, whole = failing, new.index.put_all
                with pytest.raises(ZeroDivisionError):
                    await new.reprofiling.run()
                new.index.put_all = whole
        assert await encoders(new) == {"hash:2"}

        await new.catalog.reconcile()

        assert await encoders(new) == {"hash:2"}

    async def test_going_back_within_the_time_of_grace_costs_nothing(self, old):
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass
        back = with_encoder(new, "hash:1")

        assert not await back.reprofiling.run()

        assert await encoders(back) == {"hash:1"}
        assert back.encoder.batches == []


class TestTwoEncoders:
    async def test_a_process_of_before_the_change_over_does_not_change_it_back(self, old):
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass
        after = await new.catalog.snapshot()

        assert not await old.reprofiling.is_due()
        assert not await old.reprofiling.run()

        assert await new.catalog.snapshot() == after

    async def test_a_process_of_after_it_takes_up_what_one_of_before_it_publishes(self, old):
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass
        assert not await new.reprofiling.is_due()
        await publish(old, "late", seed=9)

        assert await new.reprofiling.is_due()


class TestMeanwhile:
    async def test_what_arrives_can_be_named_and_is_chosen_after_the_change_over(self, old):
        new = with_encoder(old)
        await new.reprofiling.run()
        await publish(new, "late", seed=9)
        assert (await new.catalog.entry("late")).num_samples == 0

        while await new.reprofiling.run():
            pass

        assert (await new.catalog.entry("late")).num_samples == 2

    async def test_one_from_a_process_with_the_old_encoder_is_embedded_afterwards(self, old):
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass
        await publish(old, "late", seed=9)
        assert (await new.catalog.entry("late")).num_samples == 0
        assert await new.reprofiling.is_due()

        await new.reprofiling.run()

        assert (await new.catalog.entry("late")).encoder_id == "hash:2"

    async def test_lost_texts_cost_the_choice_of_that_adapter_alone(self, old):
        shutil.rmtree(old.data_dir / "profiles" / (await old.catalog.entry("a2")).revision)
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass

        entries = (await new.catalog.snapshot()).entries
        assert [name for name, entry in entries.items() if not entry.num_samples] == ["a2"]

    async def test_profiles_of_the_old_encoder_are_collected_after_the_time_of_grace(self, old, monkeypatch):
        new = with_encoder(old)
        while await new.reprofiling.run():
            pass
        kept = await new.collector.collect()
        monkeypatch.setattr("services.registry.collection.time.time", lambda: 4e9)
        monkeypatch.setattr("services.registry.infra.write_once.time.time", lambda: 4e9)

        gone = await new.collector.collect()

        assert (len(kept.profiles), len(gone.profiles)) == (0, 5)
        assert all(entry.num_samples for entry in (await new.catalog.snapshot()).entries.values())


async def failing(*_):
    raise ZeroDivisionError
