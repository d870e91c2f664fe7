"""Embeddings through OpenAI's own client; tokens as vLLM's clients ask for them."""

from __future__ import annotations

import httpx
import numpy as np
import openai
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestEmbeddings:
    @pytest.mark.parametrize("model", ["encoder", "hash", "hash:1"])
    async def test_they_are_those_that_adapters_are_chosen_by(self, client, stack, model):
        answer = await client.embeddings.create(model=model, input=["add numbers", "rhyme"])
        expected = stack.encoder.encode(["add numbers", "rhyme"])
        assert answer.model == "hash:1"
        assert [item.index for item in answer.data] == [0, 1]
        np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-7)
        assert answer.usage.prompt_tokens == 3

    async def test_numbers_and_base64_say_the_same(self, client):
        numbers = await client.embeddings.create(model="encoder", input="add", encoding_format="float")
        packed = await client.embeddings.create(model="encoder", input="add", encoding_format="base64")
        decoded = np.frombuffer(__import__("base64").b64decode(packed.data[0].embedding), dtype="<f4")
        np.testing.assert_allclose(numbers.data[0].embedding, decoded)

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"input": [1, 2, 3]}, "unsupported_parameter"),
            ({"input": "x", "dimensions": 8}, "unsupported_parameter"),
            ({"input": ""}, "invalid_parameter"),
            ({"input": []}, "invalid_parameter"),
        ],
    )
    async def test_what_it_cannot_embed_is_refused(self, client, fields, code):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.embeddings.create(model="encoder", **fields)
        assert raised.value.code == code

    async def test_a_model_that_makes_none_is_not_found(self, client):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.embeddings.create(model="auto", input="x")
        assert raised.value.code == "model_not_found"


class TestTokens:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    async def test_a_prompt_becomes_tokens(self, stack, prefix):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            told = (await plain.post(f"{prefix}/tokenize", json={"prompt": "a b", "return_token_strs": True})).json()
        assert told == {"count": 3, "max_model_len": 512, "tokens": [0, 1, 2], "token_strs": ["<s>", "a", "b"]}

    async def test_special_tokens_can_be_left_out(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            told = (await plain.post("/tokenize", json={"prompt": "a b", "add_special_tokens": False})).json()
        assert (told["count"], told["token_strs"]) == (2, None)

    async def test_a_conversation_is_rendered_first(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            told = (await plain.post("/tokenize", json={"messages": [{"role": "user", "content": "a b c"}]})).json()
        assert told["count"] == 4

    @pytest.mark.parametrize("prefix", ["", "/v1"])
    async def test_tokens_become_a_text(self, stack, prefix):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            told = (await plain.post(f"{prefix}/detokenize", json={"tokens": [4, 5]})).json()
        assert told == {"prompt": "t4 t5"}

    @pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])
    async def test_none_or_two_prompts_are_refused(self, stack, body):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            answer = await plain.post("/tokenize", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_input")
