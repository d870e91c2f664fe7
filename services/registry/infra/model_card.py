"""Reads model cards of strangers: a README.md with YAML in front of it and Markdown after it.

Nothing of a card is trusted: the YAML is read as plain strings, lists and mappings, without aliases (a few hundred
bytes of them unfold into gigabytes) and below a size; of the Markdown only sentences are left, without HTML, code and
addresses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

MAX_FRONT_MATTER_BYTES = 64 * 1024
"""A longer one is no front matter but an attack, or a mistake; it is passed over."""

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FENCED_CODE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_UNSEEN_ELEMENT = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,2000}>")
_IMAGE = re.compile(r"!\[[^\[\]\n]{0,500}\]\([^)\n]{0,2000}\)")
_LINK = re.compile(r"\[([^\[\]\n]{0,500})\]\([^)\n]{0,2000}\)")
_ADDRESS = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
_LIST_MARK = re.compile(r"^\s*(?:[-*+>]|\d{1,3}[.)])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MAX_DEPTH = 16
_MIN_WORDS = 4
_MAX_SENTENCE_CHARACTERS = 500
_MAX_SENTENCES = 12
_MAX_TEXT_CHARACTERS = 2000

_TEMPLATE_MARKS = (
    "more information needed",
    "provide a quick summary",
    "provide a longer summary",
    "model card has been automatically generated",
    "this is the model card of a",
    "should be made aware of the risks",
    "carbon emissions can be estimated",
    "use the code below to get started",
    "was trained using the following hyperparameters",
    "intended uses & limitations",
    "fine-tuned version of",
    "it achieves the following results",
    "this model was trained",
    "model was trained 2x faster",
)
"""What tools write into every card; it says nothing about the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a card says that can be of use for routing."""

    datasets: tuple[str, ...] = ()
    """`datasets:` of the front matter, as written."""
    tags: tuple[str, ...] = ()
    """`tags:` and `pipeline_tag:`, as written."""
    examples: tuple[str, ...] = ()
    """Texts of `widget:`: what the hub offers visitors to try."""
    sentences: tuple[str, ...] = ()
    """The first sentences of the description."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _FrontMatter:
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    end: int = 0
    """Where the Markdown begins."""


def read_model_card(text: str) -> ModelCard:
    """What a card says. Whatever is malformed is passed over: a card is never a reason to refuse an adapter."""
    front = _front_matter(text)
    pipeline = front.fields.get("pipeline_tag")
    return ModelCard(
        datasets=_strings(front.fields.get("datasets")),
        tags=(*_strings(front.fields.get("tags")), *_strings(pipeline)),
        examples=_examples(front.fields.get("widget")),
        sentences=_sentences(text[front.end :]),
    )


class _PlainLoader(yaml.BaseLoader):
    """YAML as strings, lists and mappings, without aliases, and no deeper than an honest card."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _front_matter(text: str) -> _FrontMatter:
    found = _FRONT_MATTER.match(text)
    if found is None:
        return _FrontMatter()
    source = found.group(1)
    if len(source.encode(errors="replace")) > MAX_FRONT_MATTER_BYTES:
        return _FrontMatter(end=found.end())
    try:
        fields: Any = yaml.load(source, Loader=_PlainLoader)  # noqa: S506  (strings, lists and mappings only)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return _FrontMatter(end=found.end())
    return _FrontMatter(fields=cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}, end=found.end())


def _strings(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())


def _examples(widget: object) -> tuple[str, ...]:
    if not isinstance(widget, list):
        return ()
    found: list[str] = []
    for item in cast("list[object]", widget):
        text = cast("dict[object, object]", item).get("text") if isinstance(item, dict) else None
        if isinstance(text, str) and text.strip():
            found.append(" ".join(text[:_MAX_TEXT_CHARACTERS].split()))
    return tuple(dict.fromkeys(found))


def _sentences(markdown: str) -> tuple[str, ...]:
    for pattern in (_COMMENT, _FENCED_CODE, _UNSEEN_ELEMENT, _TAG, _IMAGE):
        markdown = pattern.sub(" ", markdown)
    markdown = _ADDRESS.sub(" ", _LINK.sub(r"\1", markdown))
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", markdown):
        for sentence in _SENTENCE_END.split(_prose(paragraph)):
            text = sentence.strip()
            if _says_something(text):
                found.setdefault(text[:_MAX_SENTENCE_CHARACTERS])
            if len(found) == _MAX_SENTENCES:
                return tuple(found)
    return tuple(found)


def _prose(paragraph: str) -> str:
    """A paragraph as one line, without its headings and tables."""
    lines = (line for line in paragraph.splitlines() if not line.lstrip().startswith(("#", "|", "---", "===")))
    return " ".join(" ".join(_LIST_MARK.sub("", line) for line in lines).replace("*", "").replace("`", "").split())


def _says_something(text: str) -> bool:
    lowered = text.lower()
    return len(text.split()) >= _MIN_WORDS and not any(mark in lowered for mark in _TEMPLATE_MARKS)
