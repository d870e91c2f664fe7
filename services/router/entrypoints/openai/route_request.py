"""`POST /v1/route` as it is asked."""

from __future__ import annotations

from pydantic import Field

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.chat_request import Messages, chat_prompt
from services.router.entrypoints.openai.hilora_options import HiloraOptions
from services.router.entrypoints.openai.request_fields import StrictRequest, Text
from services.router.request import Prompt, TextPrompt


class RouteBody(StrictRequest):
    """`POST /v1/route`: exactly one of `text`, `prompt` and `messages`."""

    text: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    model: Text = Field(default="auto", max_length=512)
    hilora: HiloraOptions = Field(default_factory=HiloraOptions)

    def routed_prompt(self) -> Prompt:
        """What to decide for.

        Raises:
            InvalidInput: `invalid_input`, unless exactly one of the three is given.
        """
        given = [value for value in (self.text, self.prompt, self.messages) if value is not None]
        if len(given) != 1:
            raise InvalidInput(
                f"{len(given)} of text, prompt and messages are given.", remedy="Give exactly one.", place="text"
            )
        if self.messages is not None:
            return chat_prompt(self.messages)
        return TextPrompt(text=str(given[0]))
