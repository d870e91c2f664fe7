"""LangChain's OpenAI provider, without a setting that it does not need elsewhere."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Move(BaseModel):
    """How to move letters."""

    by: Literal[1, 2, 3]
    upper: bool


@tool
def shift(by: Literal[1, 2, 3], upper: bool) -> str:  # noqa: FBT001  (the schema of a tool)
    """Move each letter."""
    return f"{by} {upper}"


@pytest.fixture(scope="module")
def chat(speller):
    return ChatOpenAI(
        base_url=f"{speller.url}/v1", api_key="none", model="base", max_retries=0, max_tokens=600, seed=1, temperature=1
    )


class TestChat:
    def test_an_answer_has_its_usage_and_its_adapters(self, chat):
        answer = chat.invoke("shift it", max_tokens=5)
        assert answer.usage_metadata["output_tokens"] == 5
        assert answer.response_metadata["finish_reason"] == "length"

    def test_a_stream_joins_to_the_same_text(self, chat):
        pieces = list(chat.stream("shift it", max_tokens=20, temperature=0))
        whole = chat.invoke("shift it", max_tokens=20, temperature=0)
        assert "".join(piece.content for piece in pieces) == whole.content
        assert len(pieces) > 2

    async def test_several_at_once(self, chat):
        answers = await chat.abatch(["one", "two", "three"])
        assert all(isinstance(answer, AIMessage) for answer in answers)

    def test_log_probabilities_come_along(self, chat):
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke("shift it", max_tokens=3)
        positions = answer.response_metadata["logprobs"]["content"]
        assert len(positions) == 3
        assert all(len(position["top_logprobs"]) == 2 for position in positions)


class TestTools:
    def test_a_forced_call_runs_and_its_result_goes_back(self, chat):
        bound = chat.bind_tools([shift], tool_choice="shift", strict=True)
        question = HumanMessage("shift it")
        answer = bound.invoke([question])
        (call,) = answer.tool_calls
        result = shift.invoke(call)
        assert isinstance(result, ToolMessage)
        assert result.content.split()[0] in {"1", "2", "3"}
        again = chat.bind_tools([shift]).invoke([question, answer, result], max_tokens=5)
        assert again.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]

    def test_a_call_streams(self, chat):
        total = None
        bound = chat.bind_tools([shift], tool_choice="any", strict=True, parallel_tool_calls=False)
        for piece in bound.stream("shift it"):
            total = piece if total is None else total + piece
        (call,) = total.tool_calls
        assert call["name"] == "shift"
        assert Move.model_validate(call["args"])


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_it_is_an_instance(self, chat, method):
        assert isinstance(chat.with_structured_output(Move, method=method, strict=True).invoke("shift it"), Move)


class TestEmbeddings:
    def test_texts_become_vectors(self, speller):
        embeddings = OpenAIEmbeddings(
            base_url=f"{speller.url}/v1", api_key="none", model="encoder", check_embedding_ctx_length=False
        )
        vectors = embeddings.embed_documents(["add two numbers", "write a poem"])
        assert len(vectors) == 2
        assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-4)


class TestErrors:
    def test_an_unknown_model_is_not_found(self, chat):
        with pytest.raises(openai.NotFoundError) as raised:
            chat.invoke("x", model="nobody")
        assert raised.value.code == "model_not_found"

    def test_a_value_out_of_range_is_refused(self, chat):
        with pytest.raises(openai.BadRequestError):
            chat.invoke("x", temperature=9)
