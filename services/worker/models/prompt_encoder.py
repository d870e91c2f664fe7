"""From what a client sends to token ids."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hilora.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTurn:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


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

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, with the special tokens that the tokenizer adds by itself."""
        with self._lock:
            return tuple(self._tokenizer(text)["input_ids"])

    def encode_chat(self, turns: Sequence[ChatTurn]) -> tuple[int, ...]:
        """Token ids of a conversation in the model's own chat template, open for the assistant's answer.

        Raises:
            InvalidInput: `empty_chat`; `no_chat_template`; `invalid_chat` for turns the template refuses.
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
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                # The template writes the special tokens itself.
                return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        except TemplateError as error:
            raise InvalidInput(
                f"The chat template of {self._model_name} refuses these messages: {error}.",
                code="invalid_chat",
                remedy="Send roles in an order that the model was trained on.",
                place="messages",
            ) from error
