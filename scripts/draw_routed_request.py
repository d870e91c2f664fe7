"""Draws how one request was routed, from a real answer of `POST /v1/route`, as an SVG for the README.

    python scripts/draw_routed_request.py --url http://127.0.0.1:8000 --text TEXT     asks a running server
    python scripts/draw_routed_request.py --json docs/images/routed_request.json      draws a saved answer again

Left the request, in the middle the candidates (posterior as a bar, each rank-one component as a square, filled if a
token may use it), right what one token sees and the answer.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import urllib.request
from html import escape
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]

_IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
_MAX_ROWS = 5
_WIDTH = 980
_TOP = 62
_ROW_HEIGHT = 50
_SQUARE = 11
_SQUARE_STEP = 14
_MIDDLE_X = 300
_MIDDLE_WIDTH = 400
_RIGHT_X = 730
_BAR_WIDTH = 150
_NUM_HUES = 4

# The picture carries its own ground, so that it is readable on any page; the colours follow the reader's theme.
_STYLE = """
text { font: 13px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.ground { fill: #ffffff; stroke: #d0d7de }
.card { fill: #f6f8fa; stroke: #d0d7de }
.head { font-size: 11px; font-weight: 600; letter-spacing: .08em; fill: #59636e }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px }
.name { font-weight: 600 } .quiet { fill: #59636e } .small { font-size: 11.5px }
.big { font-size: 24px; font-weight: 600 }
.track { fill: #eaeef2 } .flow { fill: none; stroke: #afb8c1; stroke-width: 1.5 } .tip { fill: #afb8c1 }
.h0 { fill: #0969da; stroke: #0969da } .h1 { fill: #bf3989; stroke: #bf3989 }
.h2 { fill: #1a7f37; stroke: #1a7f37 } .h3 { fill: #bc4c00; stroke: #bc4c00 }
.none { fill: #afb8c1; stroke: #afb8c1 } .hollow { fill: none } .link { fill: none; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .ground { fill: #0d1117; stroke: #30363d } .card { fill: #161b22; stroke: #30363d }
  .head, .quiet { fill: #9198a1 } .track { fill: #262c36 } .flow { stroke: #57606a } .tip { fill: #57606a }
  .h0 { fill: #4493f8; stroke: #4493f8 } .h1 { fill: #f778ba; stroke: #f778ba }
  .h2 { fill: #3fb950; stroke: #3fb950 } .h3 { fill: #f0883e; stroke: #f0883e } .none { fill: #57606a; stroke: #57606a }
  .hollow, .link { fill: none }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="a running server, asked for --text")
    source.add_argument("--json", type=Path, help="what an earlier run saved")
    parser.add_argument("--text", help="the request to route")
    parser.add_argument("--exclude", action="append", default=[], help="an adapter that may not be used")
    parser.add_argument("--out", type=Path, default=_IMAGES / "routed_request.svg")
    arguments = parser.parse_args()
    if arguments.json:
        record = json.loads(arguments.json.read_text(encoding="utf-8"))
    elif arguments.text:
        record = ask(arguments.url, arguments.text, arguments.exclude)
        saved = arguments.out.with_suffix(".json")
        saved.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    else:
        parser.error("--url needs --text")
    arguments.out.write_text(draw(record), encoding="utf-8")
    print(f"Written to {arguments.out}")


def ask(url: str, text: str, excluded: list[str]) -> JsonObject:
    """The route of a text, and its greedy answer, from a running server."""
    options = {"exclude_adapters": excluded}
    route = _post(f"{url}/v1/route", {"text": text, "hilora": options})
    body = {"model": "auto", "prompt": text, "max_tokens": 32, "temperature": 0, "hilora": options}
    answer = _post(f"{url}/v1/completions", body)
    return {"text": text, "excluded": excluded, "route": route, "answer": answer["choices"][0]["text"].strip()}


def draw(record: JsonObject) -> str:
    """The SVG of a saved record."""
    route = record["route"]
    rows = route["candidates"][:_MAX_ROWS]
    height = _TOP + max(4, len(rows)) * _ROW_HEIGHT + 48
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    label = f'role="img" aria-label="{escape(_alternative_text(record))}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="10"/>',
        *_request(record, height),
        *_candidates(record, rows, height),
        *_token(record, rows, height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _request(record: JsonObject, height: int) -> list[str]:
    middle = height / 2
    lines = textwrap.wrap(record["text"], width=26)
    top = middle - 10 * len(lines)
    return [
        _text(24, 34, "REQUEST, NAMING NO ADAPTER", "head"),
        f'<rect class="card" x="20" y="{top - 30:g}" width="236" height="{20 * len(lines) + 46}" rx="8"/>',
        *(_text(36, top + 20 * number, line, "mono") for number, line in enumerate(lines)),
        _text(36, top + 20 * len(lines) + 4, 'model: "auto"', "mono small quiet"),
        _arrow(258, middle, _MIDDLE_X - 10, middle),
    ]


def _candidates(record: JsonObject, rows: list[JsonObject], height: int) -> list[str]:
    route = record["route"]
    ranks = {budget["name"]: budget["lora_rank"] for budget in route["plan"]["budgets"]}
    where = "Out of distribution" if route["is_out_of_distribution"] else "In distribution"
    if record["excluded"]:
        where += f": {', '.join(record['excluded'])} is kept out of the pool"
    parts = [
        _text(_MIDDLE_X, 34, "SEQUENCE LEVEL: WHICH ADAPTERS, HOW MANY ROCS", "head"),
        _text(
            _MIDDLE_X,
            height - 22,
            f"{where}.",
            "small quiet",
        ),
    ]
    for number, candidate in enumerate(rows):
        y = _TOP + number * _ROW_HEIGHT
        is_chosen = candidate["num_rocs"] > 0
        hue = _hue(number) if is_chosen else "none"
        filled = _BAR_WIDTH * candidate["posterior"]
        parts += [
            _text(_MIDDLE_X, y + 16, candidate["name"], "name" if is_chosen else "quiet"),
            f'<rect class="track" x="{_MIDDLE_X}" y="{y + 25}" width="{_BAR_WIDTH}" height="7" rx="3.5"/>',
            f'<rect class="{hue}" x="{_MIDDLE_X}" y="{y + 25}" width="{max(filled, 0.5):.1f}" height="7" rx="3"/>',
            _text(_MIDDLE_X + _BAR_WIDTH + 10, y + 33, f"{100 * candidate['posterior']:.1f} %", "small quiet"),
        ]
        for roc_idx in range(ranks.get(candidate["name"], 0)):
            x = _MIDDLE_X + 232 + _SQUARE_STEP * (roc_idx % 10)
            kind = hue if roc_idx < candidate["num_rocs"] else f"{hue} hollow"
            line = y + 8 + _SQUARE_STEP * (roc_idx // 10)
            parts.append(f'<rect class="{kind}" x="{x}" y="{line}" width="{_SQUARE}" height="{_SQUARE}" rx="2"/>')
        granted = "runner-up"
        if is_chosen:
            granted = f"{candidate['num_rocs']} of {ranks[candidate['name']]} ROCs, weight {candidate['weight']:.2f}"
        parts.append(_text(_MIDDLE_X + 232, y + 37, granted, "small quiet"))
    return parts


def _token(record: JsonObject, rows: list[JsonObject], height: int) -> list[str]:
    plan = record["route"]["plan"]
    num_rocs, num_available = plan["num_rocs"], sum(budget["lora_rank"] for budget in plan["budgets"])
    middle = height / 2
    parts = [_text(_RIGHT_X, 34, "TOKEN LEVEL: WHAT RUNS", "head")]
    for number, candidate in enumerate(rows):
        if candidate["num_rocs"]:
            start = _TOP + number * _ROW_HEIGHT + 14
            x = _MIDDLE_X + _MIDDLE_WIDTH - 20
            parts.append(
                f'<path class="link {_hue(number)} hollow" d="M{x} {start} C{x + 34} {start} '
                f'{_RIGHT_X - 44} {middle:g} {_RIGHT_X - 12} {middle:g}"/>'
            )
    answer = textwrap.wrap(record["answer"], width=24) or ["(empty)"]
    share = f"{100 * num_rocs / num_available:.0f} % active" if num_available else "the base alone"
    parts += [
        f'<path class="tip" d="M{_RIGHT_X - 4} {middle:g} l-9 -5 v10 z"/>',
        f'<rect class="card" x="{_RIGHT_X}" y="{middle - 62:g}" width="226" height="{132 + 20 * len(answer)}" rx="8"/>',
        _text(_RIGHT_X + 16, middle - 30, f"{num_rocs} of {num_available}", "big"),
        _text(_RIGHT_X + 16, middle - 10, f"rank-one components, {share}:", "small quiet"),
        _text(_RIGHT_X + 16, middle + 6, "in every layer the ones that", "small quiet"),
        _text(_RIGHT_X + 16, middle + 22, "the token at hand excites most", "small quiet"),
        _text(_RIGHT_X + 16, middle + 52, "ANSWER", "head"),
        *(_text(_RIGHT_X + 16, middle + 72 + 20 * number, line, "mono name") for number, line in enumerate(answer)),
    ]
    return parts


def _alternative_text(record: JsonObject) -> str:
    budgets = record["route"]["plan"]["budgets"]
    names = ", ".join(f"{budget['name']} ({budget['num_rocs']} of {budget['lora_rank']} ROCs)" for budget in budgets)
    return f"The request '{record['text']}' is routed to {names or 'the base model'} and answered '{record['answer']}'."


def _hue(number: int) -> str:
    return f"h{number % _NUM_HUES}"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="flow" d="M{x1:g} {y1:g} H{x2 - 8:g}"/><path class="tip" d="M{x2:g} {y2:g} l-9 -5 v10 z"/>'


def _post(url: str, body: JsonObject) -> JsonObject:
    request = urllib.request.Request(  # noqa: S310  (the caller's own server)
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.loads(response.read())


if __name__ == "__main__":
    main()
