"""The dashboards of deploy/observability as values."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.builders.prometheus import OBSERVABILITY

_NAME = re.compile(r"(?<![\w:])(?:hilora[_:][\w:]+|up(?=\{))(?:\{[^}]*\})?")


@dataclass(frozen=True, kw_only=True)
class PanelQuery:
    """One expression of one panel."""

    board: str
    panel: str
    expression: str

    def __str__(self) -> str:
        return f"{self.board} / {self.panel}: {self.expression}"


def boards() -> dict[str, dict[str, Any]]:
    """Each dashboard by the name of its file."""
    files = sorted((OBSERVABILITY / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def panel_queries() -> list[PanelQuery]:
    """Every expression of every panel, with a minute in the place of Grafana's own variable."""
    return [
        PanelQuery(board=name, panel=panel["title"], expression=target["expr"].replace("$__rate_interval", "1m"))
        for name, board in boards().items()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]


def selectors_of(expression: str) -> list[str]:
    """The series that an expression reads, with their matchers."""
    return _NAME.findall(expression)
