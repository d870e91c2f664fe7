"""Which words of a prompt adapters are chosen by.

Encoders read no more than some hundred tokens from the beginning of a text. So where several messages are looked at,
the newest stands first: what is cut off is the oldest.
"""

from __future__ import annotations

from services.router.request import ChatPrompt, ChatRole, Prompt
from services.router.routing_options import RoutedPart


def routed_text(prompt: Prompt | str, *, part: RoutedPart, num_turns: int, max_chars: int) -> str:
    """The text that a decision looks at.

    Args:
        prompt: what is to be answered; all of it, where it is no conversation.
        part: which messages of a conversation. Where no user spoke, the last message.
        num_turns: the user's messages that `RoutedPart.WINDOW` takes.
        max_chars: longest text.
    """
    if isinstance(prompt, str):
        return prompt[:max_chars]
    if not isinstance(prompt, ChatPrompt) or part is RoutedPart.LAST_USER:
        return prompt.routing_text[:max_chars]
    spoken = {ChatRole.USER} if part is RoutedPart.WINDOW else {ChatRole.USER, ChatRole.ASSISTANT}
    newest_first = [message.content for message in reversed(prompt.messages) if message.role in spoken]
    if part is RoutedPart.WINDOW:
        newest_first = newest_first[:num_turns]
    return "\n".join(filter(None, newest_first))[:max_chars] or prompt.routing_text[:max_chars]
