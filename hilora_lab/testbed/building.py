"""What every build of a testbed shares: the folder it works in, the base's files, and where the result goes."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hilora.errors import Conflict
from hilora_lab.testbed.folder import ADAPTERS_FOLDER, BASE_FOLDER, folder_size_bytes

_RECIPE_FILE = "recipe.json"


class BuildProgress(Protocol):
    """Follows a build; the command line draws bars from it."""

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        """Called with the stage's name, how much of it is done, and a word on the state of things."""
        ...


def in_silence(stage: str, done: int, total: int, detail: str) -> None:
    """The default: nobody watches."""


def working_folder(out: Path, recipe: Mapping[str, Any]) -> Path:
    """The folder to build in: what an interrupted build of the same recipe left, or an empty one."""
    building = out.with_name(f"{out.name}.building")
    recipe_path = building / _RECIPE_FILE
    wanted = json.dumps(recipe, sort_keys=True)
    if not (recipe_path.is_file() and recipe_path.read_text(encoding="utf-8") == wanted):
        if building.exists():
            shutil.rmtree(building)
        building.mkdir(parents=True)
        recipe_path.write_text(wanted, encoding="utf-8")
    return building


def save_base(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the base as float16 with a config that loads it as float32: half the size, full-precision arithmetic."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    base.half().save_pretrained(str(partial))
    config_path = partial / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(str(partial))
    partial.rename(folder)


def check_destination(out: Path, *, replace_existing: bool) -> None:
    """Refuse to build over a testbed that nobody wants to lose.

    Raises:
        Conflict: `testbed_exists`.
    """
    if out.exists() and not replace_existing:
        raise Conflict(
            f"{out} exists.", code="testbed_exists", remedy="Name another folder or pass --force.", place=str(out)
        )


def publish(building: Path, out: Path) -> None:
    """Give a finished build its final name; what had the name is gone."""
    (building / _RECIPE_FILE).unlink()
    if out.exists():
        shutil.rmtree(out)
    building.rename(out)


def origin(folder: Path) -> dict[str, Any]:
    """What a report says about the software of a build and the size of its files."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")},
        },
        "size_bytes": {
            BASE_FOLDER: folder_size_bytes(folder / BASE_FOLDER),
            ADAPTERS_FOLDER: folder_size_bytes(folder / ADAPTERS_FOLDER),
        },
    }
