"""`/tokenize` and `/detokenize`, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from hilora.errors import InvalidInput
from services.common.inference_keys import InferenceScope
from services.router.admission import Admission
from services.router.entrypoints.access import caller_of, require
from services.router.entrypoints.disconnects import unless_disconnected
from services.router.entrypoints.openai.chat_request import Messages, chat_prompt
from services.router.entrypoints.openai.descriptions import JsonObject
from services.router.entrypoints.openai.documents import ERROR_RESPONSES, TextDocument, TokensDocument
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.entrypoints.openai.sampling_fields import TokenId
from services.router.entrypoints.openai.tools import MAX_TOOLS, ToolBody, ToolUse
from services.router.ports import Workers
from services.router.request import Prompt, TextPrompt
from services.router.tool_calls import ToolCallFormat

_MAX_TOKENS = 1_000_000


class TokenizeBody(StrictRequest):
    """`POST /tokenize`: exactly one of `prompt` and `messages`."""

    model: Text | None = Field(default=None, max_length=512)
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False

    def to_prompt(self) -> Prompt:
        """The prompt in the router's own terms.

        Raises:
            InvalidInput: `invalid_input`, unless exactly one form is given; `invalid_parameter`.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidInput("Exactly one of prompt and messages is needed.", remedy="Give one.", place="prompt")
        if self.messages is None:
            return TextPrompt(text=self.prompt or "")
        if self.add_generation_prompt == self.continue_final_message:
            raise InvalidInput(
                "A conversation is either answered or its last message continued.",
                code="invalid_parameter",
                remedy="Set add_generation_prompt to the contrary of continue_final_message.",
                place="add_generation_prompt",
            )
        tools = ToolUse(self.tools, None, allows_several=True, format=ToolCallFormat.AUTO)
        return chat_prompt(self.messages, tools=tools.described(), continues_final_message=self.continue_final_message)


class DetokenizeBody(StrictRequest):
    """`POST /detokenize`."""

    model: Text | None = Field(default=None, max_length=512)
    tokens: Annotated[list[TokenId], Field(max_length=_MAX_TOKENS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRoutes:
    """The routes over a worker's tokenizer; all adapters share the base's."""

    workers: Workers
    admission: Admission

    def api_router(self) -> APIRouter:
        """For `FastAPI.include_router`."""
        routes = APIRouter(responses=ERROR_RESPONSES)
        infer = [require(InferenceScope.INFER)]
        for prefix in ("", "/v1"):
            is_shown = not prefix
            routes.add_api_route(
                f"{prefix}/tokenize",
                self._tokenize,
                methods=["POST"],
                response_model=TokensDocument,
                dependencies=infer,
                include_in_schema=is_shown,
            )
            routes.add_api_route(
                f"{prefix}/detokenize",
                self._detokenize,
                methods=["POST"],
                response_model=TextDocument,
                dependencies=infer,
                include_in_schema=is_shown,
            )
        return routes

    async def _tokenize(self, body: TokenizeBody, request: Request) -> JsonObject:
        """The tokens that a prompt would become."""
        prompt = body.to_prompt()
        async with self.admission.admit(caller_of(request), num_tokens=0):
            tokenized = await unless_disconnected(
                request, self.workers.tokenize(prompt, omits_special_tokens=not body.add_special_tokens)
            )
        return {
            "count": len(tokenized.token_ids),
            "max_model_len": tokenized.max_model_len,
            "tokens": list(tokenized.token_ids),
            "token_strs": list(tokenized.tokens) if body.return_token_strs else None,
        }

    async def _detokenize(self, body: DetokenizeBody, request: Request) -> JsonObject:
        """The text of tokens."""
        async with self.admission.admit(caller_of(request), num_tokens=0):
            return {"prompt": await unless_disconnected(request, self.workers.detokenize(body.tokens))}
