"""A system whose base can spell: its weights are random, its answers are what a grammar allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.builders.models import save_base
from tests.builders.system import RunningSystem

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}[{{ message.role }}]"
    "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
SHIFT = {
    "type": "function",
    "function": {
        "name": "shift",
        "description": "Moves each letter.",
        "parameters": {
            "type": "object",
            "properties": {"by": {"enum": [1, 2, 3]}, "upper": {"type": "boolean"}},
            "required": ["by", "upper"],
            "additionalProperties": False,
        },
    },
}


@contextmanager
def running_speller(folder: Path) -> Iterator[RunningSystem]:
    """The system, without adapters."""
    save_base(folder / "base", chat_template=TEMPLATE, max_position_embeddings=2048)
    command = ("serve", "--base", str(folder / "base"))
    running = RunningSystem(data_dir=folder / "data", command=command, pool=frozenset()).start()
    try:
        yield running
    finally:
        status = running.terminate()
    assert status == 0, running.log[-4000:]
