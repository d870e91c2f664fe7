"""Which components of an adapter acted, as one strip a layer.

Each row is a layer, each group of cells one of its modules, each cell a component, in the order of the adapter's basis:
the higher the bar, the larger the share of tokens at which it acted. Where a row would be too long, neighbouring
components share a cell, and their mean is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = ("grey35", "blue", "dodger_blue2", "dark_cyan", "green3", "yellow3", "orange1", "red1")
_NEVER = "·"
_MIN_WIDTH = 40

Strips = dict[str, dict[str, list[list[float]]]]
"""By layer and module, shares of the tokens by component; several lists where a layer has several such modules."""


def gating_strips(hilora: dict[str, Any], *, width: int) -> RenderableType | None:
    """The strips of all adapters of an answer; None if it tells nothing of its components.

    Args:
        hilora: the answer's object of that name.
        width: of the screen, in characters.
    """
    from rich.console import Group
    from rich.text import Text

    modules, num_tokens = hilora.get("gating") or [], int(hilora.get("num_gated_tokens") or 0)
    if not modules or num_tokens == 0:
        return None
    names = {adapter["adapter_id"]: adapter["name"] for adapter in hilora.get("adapters", ())}
    lines: list[Text] = []
    for adapter_id, strips in _by_adapter(modules, num_tokens).items():
        lines.append(Text(f"{names.get(adapter_id, adapter_id)}, {num_tokens} tokens", style="bold"))
        lines += _lines(strips, width=max(width, _MIN_WIDTH))
    return Group(*lines)


def _by_adapter(modules: Sequence[dict[str, Any]], num_tokens: int) -> dict[str, Strips]:
    found: dict[str, Strips] = {}
    for module in modules:
        layer, name = place_of(module["module_path"])
        for adapter in module["adapters"]:
            shares = [min(1.0, fired / num_tokens) for fired in adapter["num_tokens_fired"]]
            strips = found.setdefault(adapter.get("adapter_id") or adapter["name"], {})
            strips.setdefault(layer, {}).setdefault(name, []).append(shares)
    return found


def place_of(module_path: str) -> tuple[str, str]:
    """Layer and short name of a module: `model.layers.3.mlp.down_proj` is `("3", "down")`. Experts of one layer share
    theirs; what is in no layer is its own."""
    parts = module_path.split(".")
    layer = next((part for part in parts[:-1] if part.isdigit()), None)
    name = parts[-1].removesuffix("_proj")
    return (parts[-1], "") if layer is None else (layer, name)


def _lines(strips: Strips, *, width: int) -> list[Any]:
    from rich.text import Text

    layers = [layer for layer in strips if layer.isdigit()]
    names = list(dict.fromkeys(name for layer in layers for name in strips[layer]))
    label_width = max(map(len, strips))
    room = max(1, (width - label_width - 1) // max(1, len(names)) - 1)
    sizes = {name: _cells_of([strips[layer].get(name, []) for layer in layers], room) for name in names}
    lines: list[Text] = []
    if names:
        head = " ".join(name[: sizes[name]].ljust(sizes[name]) for name in names)
        lines.append(Text(f"{'':{label_width}} {head}", style="dim"))
    for layer in sorted(layers, key=int):
        line = Text(f"{layer:>{label_width}} ", style="dim")
        for name in names:
            line.append_text(_cells(strips[layer].get(name, []), sizes[name]))
            line.append(" ")
        lines.append(line)
    for label in strips:
        if not label.isdigit():
            line = Text(f"{label:>{label_width}} ", style="dim")
            shares = strips[label][""]
            line.append_text(_cells(shares, _cells_of([shares], width - label_width - 1)))
            lines.append(line)
    return lines


def _cells_of(modules: Sequence[list[list[float]]], room: int) -> int:
    return min(room, max((len(shares) for of_layer in modules for shares in of_layer), default=1))


def _cells(shares: Sequence[list[float]], size: int) -> Any:
    """`size` cells for the components of some modules of one kind; blank where a module has none."""
    from rich.text import Text

    cells = Text()
    for cell in range(size):
        seen = [value for of_module in shares for value in _part(of_module, cell, size)]
        if not seen:
            cells.append(" ")
            continue
        mean = sum(seen) / len(seen)
        # Never and always are told from seldom and nearly.
        level = min(len(_BARS) - 1, int(mean * len(_BARS)))
        cells.append(_NEVER if mean == 0 else _BARS[level], style=_COLOURS[level])
    return cells


def _part(shares: list[float], cell: int, size: int) -> list[float]:
    """Which components a cell stands for: one each if there is room."""
    if len(shares) <= size:
        return shares[cell : cell + 1]
    return shares[cell * len(shares) // size : (cell + 1) * len(shares) // size]
