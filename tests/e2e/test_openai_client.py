"""The official client against the running system."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.builders.system import chosen_adapters, lines_of, task_lines


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def tasks_of_three_families():
    """One task each of three families that have adapters, in the order of the file."""
    first = {}
    for line in task_lines("fit"):
        first.setdefault(line["family"], line["task"])
    return list(first.values())[:3]


def num_right(answers, lines):
    """Completions that are the line's answer; a small model misses one now and then."""
    return sum(answer.choices[0].text.strip() == line["answer"] for answer, line in zip(answers, lines, strict=True))


class TestAutomaticChoice:
    @pytest.mark.parametrize("task", tasks_of_three_families())
    def test_completions_are_right_and_name_their_adapter(self, client, task):
        lines = lines_of(task)[:4]

        answers = [
            client.completions.create(model="auto", prompt=line["prompt"], max_tokens=24, temperature=0)
            for line in lines
        ]

        assert num_right(answers, lines) >= 3
        assert all(task in chosen_adapters(answer.model_dump()) for answer in answers)

    @pytest.mark.parametrize("task", tasks_of_three_families())
    def test_streamed_chat_says_the_same_as_unstreamed(self, client, task):
        line = lines_of(task)[0]
        request = {
            "model": "auto",
            "messages": [{"role": "user", "content": line["prompt"]}],
            "temperature": 0,
            "max_tokens": 24,
        }

        whole = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True))

        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len([piece for piece in pieces if piece]) > 1
        assert chosen_adapters(chunks[0].model_dump()) == chosen_adapters(whole.model_dump())
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"

    def test_headers_name_the_adapters_too(self, client):
        line = lines_of(tasks_of_three_families()[0])[0]

        raw = client.completions.with_raw_response.create(model="auto", prompt=line["prompt"], temperature=0)

        assert line["task"] in raw.headers["x-hilora-adapters"]
        assert raw.headers["x-request-id"]


class TestNamedModels:
    def test_an_adapter_by_name_runs_alone(self, client):
        lines = lines_of(tasks_of_three_families()[1])[:4]

        answers = [
            client.completions.create(model=line["task"], prompt=line["prompt"], max_tokens=24, temperature=0)
            for line in lines
        ]

        assert all(chosen_adapters(answer.model_dump()) == [lines[0]["task"]] for answer in answers)
        assert num_right(answers, lines) >= 3

    def test_the_base_runs_without_any(self, client):
        models = client.models.list().data
        base = next(model.id for model in models if model.id != "auto" and not model.model_extra.get("parent"))

        answer = client.completions.create(model=base, prompt=task_lines()[0]["prompt"], temperature=0)

        assert chosen_adapters(answer.model_dump()) == []

    def test_an_unknown_name_is_404_and_never_the_base(self, client):
        with pytest.raises(openai.NotFoundError) as raised:
            client.completions.create(model="nobody", prompt="x")

        assert raised.value.body["code"] == "model_not_found"


class TestDifferentPlansTogether:
    async def test_twelve_at_once_equal_each_alone(self, system):
        tasks = list(dict.fromkeys(line["task"] for line in task_lines("fit")))[:12]
        lines = [lines_of(task)[1] for task in tasks]

        async with openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as client:

            async def answer(line):
                made = await client.completions.create(
                    model="auto", prompt=line["prompt"], max_tokens=24, temperature=0
                )
                return made.choices[0].text, made.model_dump()["hilora"]["adapters"]

            alone = [await answer(line) for line in lines]
            together = await asyncio.gather(*map(answer, lines))

        assert together == alone
        assert len({str(adapters) for _, adapters in alone}) == 12
