"""From what a client sends to token ids, and back to text."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from hilora.errors import InvalidInput
from services.worker.models.chat_turns import ChatTurn, TemplateInput, template_input


class PromptEncoder:
    """Tokenises prompts. May be called from any thread.

    Args:
        tokenizer: the base model's; it is copied, because a Rust tokenizer that encodes on one thread while it decodes
            on another one fails at random.
        model_name: for messages.
    """

    def __init__(self, tokenizer: Any, *, model_name: str) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._model_name = model_name
        self._lock = threading.Lock()

    def encode(self, text: str, *, adds_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text, by default with the special tokens that the tokenizer adds by itself."""
        with self._lock:
            return tuple(self._tokenizer(text, add_special_tokens=adds_special_tokens)["input_ids"])

    def encode_chat(
        self, turns: Sequence[ChatTurn], *, tools: str = "", continues_final_message: bool = False
    ) -> tuple[int, ...]:
        """Token ids of a conversation in the model's own chat template, open for the assistant's answer.

        Args:
            turns: the conversation.
            tools: what the model may call, a JSON list of OpenAI's tool objects; a template that has no place for
                them gets them described in a system turn.
            continues_final_message: leave the last turn, an assistant's, open instead.

        Raises:
            InvalidInput: `empty_chat`; `no_chat_template`; `invalid_tools`; `invalid_chat` for turns the template
                refuses.
        """
        from jinja2 import TemplateError

        if not turns:
            raise InvalidInput(
                "The conversation has no messages.", code="empty_chat", remedy="Send one at least.", place="messages"
            )
        if not self._tokenizer.chat_template:
            raise InvalidInput(
                f"The tokenizer of {self._model_name} has no chat template.",
                code="no_chat_template",
                remedy="Use the completions API, or a base model with a chat template.",
                place="messages",
            )
        given = template_input(turns, tools=tools, template=str(self._tokenizer.chat_template))
        try:
            return self._rendered(given, continues_final_message=continues_final_message)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise InvalidInput(
                f"The chat template of {self._model_name} refuses these messages: {error}.",
                code="invalid_chat",
                remedy="Send roles in an order that the model was trained on.",
                place="messages",
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            InvalidInput: `invalid_token_id`.
        """
        self._check(token_ids)
        with self._lock:
            return str(
                self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )

    def spell(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the tokenizer spells it.

        Raises:
            InvalidInput: `invalid_token_id`.
        """
        self._check(token_ids)
        with self._lock:
            return tuple(str(token) for token in self._tokenizer.convert_ids_to_tokens(list(token_ids)))

    def _check(self, token_ids: Sequence[int]) -> None:
        size = len(self._tokenizer)
        for token_id in token_ids:
            if not 0 <= token_id < size:
                raise InvalidInput(
                    f"{token_id} is no token of {self._model_name}.",
                    code="invalid_token_id",
                    remedy=f"Send ids below {size}.",
                    place="tokens",
                )

    def _rendered(self, given: TemplateInput, *, continues_final_message: bool) -> tuple[int, ...]:
        with self._lock:
            text = self._tokenizer.apply_chat_template(
                given.messages,
                tools=given.tools,
                add_generation_prompt=not continues_final_message,
                continue_final_message=continues_final_message,
                tokenize=False,
            )
            # The template writes the special tokens itself.
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
