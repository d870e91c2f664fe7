"""LiteLLM's OpenAI provider."""

from __future__ import annotations

import json
import os

import pytest

from tests.builders.speller import SHIFT

# Before the import: else it asks the internet for prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM warns about its own models and clients
QUESTION = [{"role": "user", "content": "shift it"}]


@pytest.fixture(scope="module")
def ask(speller):
    def ask(**fields):
        asked = {"model": "openai/base", "messages": QUESTION, "max_tokens": 300, "seed": 1, "num_retries": 0}
        return litellm.completion(**(asked | fields), api_base=f"{speller.url}/v1", api_key="none")

    return ask


def check_shift(arguments):
    values = json.loads(arguments)
    assert values["by"] in {1, 2, 3}
    assert isinstance(values["upper"], bool)


class TestChat:
    def test_an_answer_has_its_usage(self, ask):
        answer = ask(max_tokens=5)
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")

    def test_a_stream_joins_to_the_same_text(self, ask):
        pieces = [piece.choices[0].delta.content or "" for piece in ask(max_tokens=20, temperature=0, stream=True)]
        assert "".join(pieces) == ask(max_tokens=20, temperature=0).choices[0].message.content

    def test_several_answers(self, ask):
        assert len(ask(n=2, max_tokens=3).choices) == 2


class TestTools:
    def test_a_forced_call(self, ask):
        answer = ask(tools=[SHIFT], tool_choice={"type": "function", "function": {"name": "shift"}})
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, answer.choices[0].finish_reason) == ("shift", "tool_calls")
        check_shift(call.function.arguments)

    def test_a_call_streams(self, ask):
        chunks = list(ask(tools=[SHIFT], tool_choice="required", parallel_tool_calls=False, stream=True))
        whole = litellm.stream_chunk_builder(chunks)
        (call,) = whole.choices[0].message.tool_calls
        assert call.function.name == "shift"
        check_shift(call.function.arguments)


class TestForms:
    def test_an_answer_is_an_instance_of_its_schema(self, ask):
        schema = {"name": "move", "schema": SHIFT["function"]["parameters"], "strict": True}
        answer = ask(response_format={"type": "json_schema", "json_schema": schema})
        check_shift(answer.choices[0].message.content)


class TestOthers:
    def test_embeddings(self, speller):
        answer = litellm.embedding(
            model="openai/encoder", input=["add", "poem"], api_base=f"{speller.url}/v1", api_key="none"
        )
        assert len(answer.data) == 2

    def test_errors_keep_their_kind(self, ask):
        with pytest.raises(litellm.NotFoundError):
            ask(model="openai/nobody")
        with pytest.raises(litellm.BadRequestError):
            ask(temperature=9)
