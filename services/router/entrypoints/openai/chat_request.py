"""`POST /v1/chat/completions` as it is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.entrypoints.openai.sampling_fields import (
    LEAVE_OUT,
    MAX_TOP_LOGPROBS,
    UINT32_MAX,
    SamplingFields,
    refuse_unsupported,
)
from services.router.entrypoints.openai.tools import MAX_TOOLS, ToolBody, ToolCallBody, ToolChoice, ToolUse
from services.router.request import ChatMessage, ChatPrompt, ChatRole, SamplingParams
from services.router.tool_calls import ToolCallFormat

_USE_TOOLS = "Send tools and tool_choice instead."
_UNSUPPORTED: dict[str, tuple[tuple[object, ...], str]] = {
    "functions": (([],), _USE_TOOLS),
    "function_call": (("none", "auto"), _USE_TOOLS),
    "modalities": ((["text"],), LEAVE_OUT),
    "audio": ((), LEAVE_OUT),
    "reasoning_effort": ((), LEAVE_OUT),
    "verbosity": ((), LEAVE_OUT),
    "web_search_options": ((), LEAVE_OUT),
}


class TextPart(StrictRequest):
    """One text part of a message's content."""

    type: Literal["text"]
    text: Text


class MessageBody(StrictRequest):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = Field(default=None, max_length=256)
    tool_calls: Annotated[list[ToolCallBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Text | None = Field(default=None, max_length=256)
    # What a client sends back of an earlier answer; only the text can be used.
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None

    def chat_message(self) -> ChatMessage:
        """The message in the router's own terms; parts are joined by line breaks.

        Raises:
            InvalidInput: `missing_parameter`, where a message says nothing and calls nothing.
        """
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise InvalidInput(
                f"A message of role {self.role} has no content.",
                code="missing_parameter",
                remedy="Send a text; only an assistant's message with tool_calls may go without.",
                place="messages.content",
            )
        role = ChatRole.SYSTEM if self.role == "developer" else ChatRole(self.role)
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content or ()]
        return ChatMessage(
            role=role,
            content="\n".join(parts),
            tool_calls=tuple(call.tool_call() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id or "",
            name=self.name or "",
        )


Messages = Annotated[list[MessageBody], Field(min_length=1, max_length=4096)]
"""A conversation, oldest first."""


def chat_prompt(messages: list[MessageBody], *, tools: str = "", continues_final_message: bool = False) -> ChatPrompt:
    """A conversation in the router's own terms.

    Raises:
        InvalidInput: `missing_parameter`; `invalid_parameter`, where a user's message is to be continued.
    """
    if continues_final_message and messages[-1].role != "assistant":
        raise InvalidInput(
            "Only an assistant's message can be continued.",
            code="invalid_parameter",
            remedy="Let the last message be an assistant's, or leave continue_final_message out.",
            place="continue_final_message",
        )
    return ChatPrompt(
        messages=tuple(message.chat_message() for message in messages),
        tools=tools,
        continues_final_message=continues_final_message,
    )


class ChatBody(SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1, le=UINT32_MAX)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=UINT32_MAX)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # vLLM's own.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    prediction: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def check(self) -> None:
        """Refuse what would have to be ignored.

        Raises:
            InvalidInput: `unsupported_parameter`, or `invalid_parameter`.
        """
        refuse_unsupported(self, _UNSUPPORTED)
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput(
                "top_logprobs is set, and logprobs is not.",
                code="invalid_parameter",
                remedy="Set logprobs to true.",
                place="top_logprobs",
            )
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            raise InvalidInput(
                "A conversation is either answered or its last message continued.",
                code="invalid_parameter",
                remedy="Set add_generation_prompt to the contrary of continue_final_message, or leave it out.",
                place="add_generation_prompt",
            )

    def tool_use(self, format: ToolCallFormat) -> ToolUse:  # noqa: A002  (the word for it)
        """What the tools come to. Raises as `ToolUse`."""
        allows_several = self.parallel_tool_calls is not False
        return ToolUse(self.tools, self.tool_choice, allows_several=allows_several, format=format, form=self.grammar())

    def chat_prompt(self, tools: ToolUse) -> ChatPrompt:
        """The conversation in the router's own terms. Raises as `chat_prompt`."""
        return chat_prompt(
            self.messages, tools=tools.described(), continues_final_message=bool(self.continue_final_message)
        )

    def sampling(self, tools: ToolUse, *, max_model_len: int | None) -> SamplingParams:
        """Without a limit of the client's the answer may fill the context; the worker stops it there.

        Raises:
            InvalidInput: `invalid_parameter`, where a call and another form of answer are both demanded.
        """
        return self.sampling_params(
            max_tokens=self.max_completion_tokens or self.max_tokens or max_model_len,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=tools.grammar(),
        )
