"""`POST /v1/completions` through OpenAI's own client."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.fakes.router_stack import task_texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PROMPT = f"{task_texts('capitals')[0]} of France"


class TestWhole:
    async def test_it_reads_as_openai_s_own(self, client):
        answer = await client.completions.create(model="auto", prompt=_PROMPT)
        assert answer.object == "text_completion"
        assert answer.id.startswith("cmpl-")
        assert answer.model == "auto"
        assert answer.choices[0].text == "Paris is the capital."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 7 + 4

    async def test_it_says_which_adapters_ran(self, client, stack):
        answer = await client.completions.create(model="auto", prompt=_PROMPT)
        hilora = answer.model_extra["hilora"]
        first = hilora["adapters"][0]
        assert first["name"] == "capitals"
        assert first["adapter_id"] == "capitals@aaaaaaaaaaaa"
        assert 1 <= first["num_rocs"] <= first["lora_rank"] == 8
        assert hilora["mode"] == "calibrated"
        assert hilora["catalog_generation"] == stack.registry.service.generation
        assert hilora["reason"]
        assert "candidates" not in hilora

    async def test_it_says_so_in_headers_too(self, client, stack):
        raw = await client.completions.with_raw_response.create(model="sums", prompt=_PROMPT)
        assert raw.headers["X-HiLoRA-Adapters"] == "sums:8/1"
        assert raw.headers["X-HiLoRA-Catalog-Generation"] == str(stack.registry.service.generation)
        assert raw.headers["X-HiLoRA-Mode"] == "explicit"
        assert raw.headers["X-HiLoRA-OOD"] == "false"

    async def test_the_worker_gets_the_plan_and_the_parameters(self, client, stack):
        await client.completions.create(
            model="auto", prompt=_PROMPT, max_tokens=3, temperature=0.25, top_p=0.5, seed=-1, stop=["\n", "END"]
        )
        request = stack.worker.service.requests[-1]
        assert request.prompt == _PROMPT
        assert request.plan.budgets[0].adapter_name == "capitals"
        assert request.plan.catalog_generation == stack.registry.service.generation
        assert request.sampling.max_tokens == 3
        assert request.sampling.temperature == 0.25
        assert request.sampling.top_p == 0.5
        assert request.sampling.seed == 2**64 - 1
        assert list(request.sampling.stop) == ["\n", "END"]

    async def test_sixteen_tokens_are_the_default(self, client, stack):
        await client.completions.create(model="base", prompt="x")
        assert stack.worker.service.requests[-1].sampling.max_tokens == 16

    async def test_a_cut_answer_says_length(self, client):
        answer = await client.completions.create(model="base", prompt="x", max_tokens=2)
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].text == "Paris is"

    async def test_a_list_of_one_text_is_a_text(self, client, stack):
        await client.completions.create(model="base", prompt=["only one"])
        assert stack.worker.service.requests[-1].prompt == "only one"

    async def test_the_synchronous_client_works_as_well(self, stack):
        def call() -> str:
            with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
                return client.completions.create(model="auto", prompt=_PROMPT).choices[0].text

        assert await asyncio.to_thread(call) == "Paris is the capital."


class TestModelValues:
    async def test_an_adapter_s_name_pins_it_with_all_its_rocs(self, client):
        answer = await client.completions.create(model="poems", prompt=_PROMPT)
        assert answer.model == "poems"
        assert [(used["name"], used["num_rocs"]) for used in answer.model_extra["hilora"]["adapters"]] == [("poems", 8)]

    @pytest.mark.parametrize("name", ["base", "tiny-base"])
    async def test_the_base_runs_without_adapters(self, client, stack, name):
        answer = await client.completions.create(model=name, prompt=_PROMPT)
        assert answer.model == name
        assert answer.model_extra["hilora"]["adapters"] == []
        assert not stack.worker.service.requests[-1].plan.budgets

    async def test_an_unknown_name_is_never_the_base(self, client, stack):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.completions.create(model="capitols", prompt=_PROMPT)
        assert raised.value.code == "model_not_found"
        assert raised.value.param == "model"
        assert not stack.worker.service.requests


class TestHiloraOptions:
    async def test_excluded_adapters_do_not_run(self, client):
        answer = await client.completions.create(
            model="auto", prompt=_PROMPT, extra_body={"hilora": {"exclude_adapters": ["capitals"]}}
        )
        names = {used["name"] for used in answer.model_extra["hilora"]["adapters"]}
        assert names
        assert "capitals" not in names

    async def test_max_candidates_bounds_the_plan(self, client):
        answer = await client.completions.create(
            model="auto", prompt="nothing known here", extra_body={"hilora": {"max_candidates": 1, "mode": "paper"}}
        )
        assert len(answer.model_extra["hilora"]["adapters"]) == 1
        assert answer.model_extra["hilora"]["mode"] == "paper"

    async def test_explain_adds_the_candidates(self, client):
        answer = await client.completions.create(model="auto", prompt=_PROMPT, extra_body={"hilora": {"explain": True}})
        candidates = answer.model_extra["hilora"]["candidates"]
        assert {candidate["name"] for candidate in candidates} == {"capitals", "sums", "poems"}
        assert candidates[0]["name"] == "capitals"

    async def test_a_named_adapter_cannot_be_excluded_as_well(self, client):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(
                model="capitals", prompt="x", extra_body={"hilora": {"exclude_adapters": ["capitals"]}}
            )
        assert raised.value.code == "excluded_model"

    @pytest.mark.parametrize(
        "options",
        [{"gama": 0.5}, {"gamma": 0}, {"gamma": 1.5}, {"mode": "explicit"}, {"max_candidates": 0}, {"seed": -1}, 3],
    )
    async def test_what_means_nothing_is_refused(self, client, options):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt="x", extra_body={"hilora": options})
        assert raised.value.param.startswith("hilora")


class TestStream:
    async def test_chunks_join_to_the_whole_text(self, client):
        chunks = [chunk async for chunk in await client.completions.create(model="auto", prompt=_PROMPT, stream=True)]
        assert "".join(chunk.choices[0].text for chunk in chunks) == "Paris is the capital."
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
        assert {chunk.id for chunk in chunks} == {chunks[0].id}

    async def test_first_and_last_chunk_name_the_adapters(self, client):
        chunks = [chunk async for chunk in await client.completions.create(model="auto", prompt=_PROMPT, stream=True)]
        with_plan = [position for position, chunk in enumerate(chunks) if "hilora" in (chunk.model_extra or {})]
        assert with_plan == [0, len(chunks) - 1]
        assert chunks[0].model_extra["hilora"]["adapters"][0]["name"] == "capitals"
        assert chunks[-1].model_extra["hilora"]["adapters"][0]["name"] == "capitals"

    async def test_usage_comes_only_when_asked_for(self, client):
        stream = await client.completions.create(
            model="auto", prompt=_PROMPT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 4
        assert all(chunk.usage is None for chunk in chunks[:-1])
        plain = [chunk async for chunk in await client.completions.create(model="auto", prompt=_PROMPT, stream=True)]
        assert all(chunk.usage is None for chunk in plain)

    async def test_the_synchronous_client_streams_as_well(self, stack):
        def call() -> str:
            with (
                openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client,
                client.completions.create(model="auto", prompt=_PROMPT, stream=True) as stream,
            ):
                return "".join(chunk.choices[0].text for chunk in stream)

        assert await asyncio.to_thread(call) == "Paris is the capital."
