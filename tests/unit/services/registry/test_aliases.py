"""Other words for names and versions: moved in one step, never in the place of a name."""

from __future__ import annotations

import pytest

from hilora.errors import Conflict, InvalidInput, UnknownAdapter
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path)
    await stack.catalog.reconcile()
    return stack


class TestAliases:
    async def test_an_alias_moves_in_one_generation(self, stack):
        await stack.publish("blue")
        last = await stack.publish("green", seed=1)

        first = await stack.lifecycle.put_alias("prod", "blue")
        second = await stack.lifecycle.put_alias("prod", "green@1")

        assert (first, second) == (last.catalog_generation + 1, last.catalog_generation + 2)
        assert (await stack.catalog.snapshot()).aliases == {"prod": "green@1"}

    async def test_a_version_is_kept_by_its_number(self, stack):
        entry = (await stack.publish()).entry
        await stack.lifecycle.put_alias("prod", f"a@{entry.revision[:16]}")
        assert await stack.lifecycle.aliases() == {"prod": "a@1"}

    async def test_it_never_stands_before_a_name(self, stack):
        await stack.publish()
        for alias in ("a", "tiny"):
            with pytest.raises(Conflict) as raised:
                await stack.lifecycle.put_alias(alias, "a")
            assert raised.value.code == "alias_is_a_name"
        for alias in ("auto", "base", "a@1", ""):
            with pytest.raises(InvalidInput):
                await stack.lifecycle.put_alias(alias, "a")

    async def test_a_name_never_takes_an_alias(self, stack):
        await stack.publish()
        await stack.lifecycle.put_alias("prod", "a")

        for attempt in (
            stack.publish("prod", seed=1),
            stack.catalog.check_name_is_free("prod", source_sha256="", is_replacement=True),
        ):
            with pytest.raises(Conflict) as raised:
                await attempt
            assert raised.value.code == "name_is_an_alias"

    async def test_what_does_not_exist_has_none(self, stack):
        await stack.publish()
        for target in ("b", "a@2"):
            with pytest.raises(UnknownAdapter):
                await stack.lifecycle.put_alias("prod", target)
        with pytest.raises(UnknownAdapter) as raised:
            await stack.lifecycle.delete_alias("prod")
        assert raised.value.code == "unknown_alias"

    async def test_they_outlive_a_loss_of_the_index_and_its_generation_does_too(self, stack):
        await stack.publish()
        await stack.lifecycle.put_alias("prod", "a")
        gone = await stack.lifecycle.delete_alias("prod")
        await stack.lifecycle.put_alias("next", "a")
        await stack.index.lose_everything()

        snapshot = await stack.catalog.snapshot()

        assert snapshot.aliases == {"next": "a"}
        assert snapshot.catalog_generation > gone + 1

    async def test_one_that_was_cut_before_it_was_published_is_mended(self, stack):
        await stack.publish()
        stack.index.failing_commits = 1
        with pytest.raises(Exception, match="Redis went away"):
            await stack.lifecycle.put_alias("prod", "a")
        assert (await stack.catalog.snapshot()).aliases == {}

        await stack.catalog.reconcile()

        assert (await stack.catalog.snapshot()).aliases == {"prod": "a"}
