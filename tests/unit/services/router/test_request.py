from __future__ import annotations

import pytest

from services.router.request import ChatMessage, ChatPrompt, ChatRole, TextPrompt


def _chat(*turns):
    return ChatPrompt(messages=tuple(ChatMessage(role=role, content=content) for role, content in turns))


class TestRoutingText:
    def test_a_text_is_routed_on_all_of_it(self):
        assert TextPrompt(text="a b").routing_text == "a b"

    def test_a_conversation_is_routed_on_the_last_thing_the_user_said(self):
        prompt = _chat((ChatRole.USER, "first"), (ChatRole.USER, "last"), (ChatRole.ASSISTANT, "reply"))
        assert prompt.routing_text == "last"

    def test_without_a_user_the_last_message_counts(self):
        assert _chat((ChatRole.SYSTEM, "a"), (ChatRole.ASSISTANT, "b")).routing_text == "b"

    def test_an_empty_conversation_is_a_mistake_of_ours(self):
        with pytest.raises(ValueError, match="at least one"):
            _chat()
