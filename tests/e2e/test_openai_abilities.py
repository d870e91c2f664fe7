"""What OpenAI's clients ask for beside plain answers, against the running system."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.builders.system import chosen_adapters, lines_of, task_lines


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def line():
    return task_lines("fit")[0]


class TestForms:
    def test_one_of_some_texts_is_chosen(self, client, line):
        wanted = [line["answer"], "a b"]
        answer = client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": line["prompt"]}],
            extra_body={"structured_outputs": {"choice": wanted}},
            max_tokens=60,
        )
        assert answer.choices[0].message.content.strip() in wanted

    def test_a_form_that_cannot_be_read_is_refused(self, client, line):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.completions.create(
                model="base", prompt=line["prompt"], extra_body={"structured_outputs": {"regex": "(unclosed"}}
            )
        assert refusal.value.code


class TestSeveral:
    def test_greedy_answers_to_one_prompt_are_equal(self, client, line):
        answer = client.completions.create(model="auto", prompt=line["prompt"], n=2, temperature=0, max_tokens=24)
        assert len({choice.text for choice in answer.choices}) == 1
        assert [choice.index for choice in answer.choices] == [0, 1]

    def test_prompts_of_several_tasks_get_their_own_adapters(self, client):
        tasks = list(dict.fromkeys(line["task"] for line in task_lines("fit")))[:3]
        prompts = [lines_of(task)[0]["prompt"] for task in tasks]

        answer = client.completions.create(model="auto", prompt=prompts, temperature=0, max_tokens=24)

        plans = answer.model_dump()["hilora"]["prompts"]
        assert all(task in chosen_adapters({"hilora": plan}) for task, plan in zip(tasks, plans, strict=True))

    def test_tokens_say_the_same_as_their_text(self, client, system, line):
        told = httpx.post(f"{system.url}/tokenize", json={"prompt": line["prompt"]}).json()

        by_text = client.completions.create(model="auto", prompt=line["prompt"], temperature=0, max_tokens=24)
        by_tokens = client.completions.create(model="auto", prompt=told["tokens"], temperature=0, max_tokens=24)

        assert by_tokens.choices[0].text == by_text.choices[0].text
        assert by_tokens.usage.prompt_tokens == by_text.usage.prompt_tokens == told["count"]


class TestProbabilities:
    def test_the_chosen_token_of_a_greedy_answer_is_the_likeliest(self, client, line):
        answer = client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": line["prompt"]}],
            temperature=0,
            max_tokens=8,
            logprobs=True,
            top_logprobs=3,
        )
        positions = answer.choices[0].logprobs.content
        assert positions
        assert all(position.logprob == pytest.approx(position.top_logprobs[0].logprob) for position in positions)
        assert all(position.logprob <= 0 for position in positions)

    def test_a_prompt_is_scored_without_an_answer(self, client, line):
        answer = client.completions.create(
            model="auto", prompt=line["prompt"], echo=True, logprobs=1, max_tokens=0, temperature=0
        )
        told = answer.choices[0].logprobs
        assert answer.choices[0].text == line["prompt"]
        assert len(told.tokens) == answer.usage.prompt_tokens
        assert told.token_logprobs[0] is None
        assert all(value <= 0 for value in told.token_logprobs[1:])


class TestEncoder:
    def test_texts_of_one_task_are_nearer_than_those_of_two(self, client):
        tasks = list(dict.fromkeys(line["task"] for line in task_lines("fit")))
        texts = [lines_of(tasks[0])[0]["prompt"], lines_of(tasks[0])[1]["prompt"], lines_of(tasks[-1])[0]["prompt"]]

        answer = client.embeddings.create(model="encoder", input=texts)

        first, second, other = (item.embedding for item in answer.data)
        assert sum(a * b for a, b in zip(first, first, strict=True)) == pytest.approx(1, abs=1e-5)
        assert sum(a * b for a, b in zip(first, second, strict=True)) > sum(
            a * b for a, b in zip(first, other, strict=True)
        )
        assert answer.usage.prompt_tokens > 0


class TestDeadlines:
    def test_an_answer_that_takes_longer_ends_in_a_clear_error(self, client, line):
        with pytest.raises(openai.APIStatusError) as late:
            client.completions.create(
                model="base",
                prompt=line["prompt"],
                max_tokens=2000,
                extra_headers={"X-Request-Timeout": "0.05"},
                extra_body={"ignore_eos": True},
            )
        assert late.value.code == "request_timeout"
