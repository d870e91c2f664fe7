"""`GET /v1/models` through OpenAI's own client."""

from __future__ import annotations

import openai
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestList:
    async def test_auto_the_base_and_every_adapter_are_listed(self, client):
        models = [model async for model in client.models.list()]
        assert [model.id for model in models] == ["auto", "tiny-base", "capitals", "poems", "sums"]

    async def test_an_adapter_names_its_parent_and_its_version(self, client):
        models = {model.id: model async for model in client.models.list()}
        capitals = models["capitals"]
        assert capitals.object == "model"
        assert capitals.created == 1_700_000_000
        assert capitals.model_extra["parent"] == "tiny-base"
        assert capitals.model_extra["root"] == "capitals@aaaaaaaaaaaa"
        assert models["tiny-base"].model_extra["parent"] is None
        assert models["tiny-base"].model_extra["max_model_len"] == 512


class TestRetrieve:
    @pytest.mark.parametrize("name", ["auto", "tiny-base", "poems"])
    async def test_every_listed_name_can_be_asked_for(self, client, name):
        assert (await client.models.retrieve(name)).id == name

    async def test_an_unknown_name_is_not_found(self, client):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve("poetry")
        assert raised.value.code == "model_not_found"
