"""`hilora train`: what strategies learn from examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hilora_cli.server_options import ApiKeyOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hilora.adapter import LoRAAdapter
    from hilora_lab.testbed.batches import TokenizedExample
    from hilora_lab.testbed.folder import Split, Testbed
    from hilora_lab.training.lorahub import LorahubRecipe

app = typer.Typer(help="Train what strategies learn: token gates, factors of adapters.", no_args_is_help=True)

_METHODS = ("ramole", "phatgoose")
TestbedOption = Annotated[Path, typer.Option("--testbed", help="A folder with base/, adapters/ and tasks.jsonl.")]


@app.callback()
def train() -> None:
    """Train what strategies learn: token gates, factors of adapters."""


@app.command("gate")
def train_gate_command(
    testbed: TestbedOption,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to: the workers' HILORA_WORKER_GATES_DIR.")],
    method: Annotated[str, typer.Option("--method", help="ramole or phatgoose.")] = "ramole",
    name: Annotated[str | None, typer.Option("--name", help="Name of the gate. [default: the method]")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps; of phatgoose for each adapter.")] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Running server that has the adapters: the versions the gate is for.")
    ] = None,
    api_key: ApiKeyOption = None,
    revision: Annotated[str, typer.Option("--revision", help="Without --url: the revision of all.")] = "offline",
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a learned gate on the fit lines of a testbed, and write its file."""
    from dataclasses import replace

    from rich.console import Console

    from hilora.adapter import adapter_id_of
    from hilora_cli.server_models import adapter_ids_of
    from hilora_lab.training.gate_file import write_gate
    from hilora_lab.training.gate_training import GateRecipe, train_gate

    if method not in _METHODS:
        raise typer.BadParameter("must be ramole or phatgoose", param_hint="--method")
    # Each of PHATGOOSE's adapters is trained by itself: few steps each.
    recipe = replace(GateRecipe(seed=seed), num_steps=steps or (120 if method == "ramole" else 30))
    opened = _opened(testbed)
    names = list(opened.adapters)
    ids = {one: adapter_id_of(one, revision) for one in names} if url is None else adapter_ids_of(names, url, api_key)
    last = 0.0
    with Console(stderr=True).status("Training") as status:

        def on_progress(done: int, total: int, loss: float) -> None:
            nonlocal last
            last = loss
            status.update(f"Training: step {done} of {total}, loss {loss:.3f}")

        gate = train_gate(
            method,
            opened.model,
            opened.adapters,
            opened.examples,
            adapter_ids=ids,
            recipe=recipe,
            on_progress=on_progress,
        )
    gate_id = write_gate(gate, out, name=name or method)
    if as_json:
        typer.echo(json.dumps({"gate_id": gate_id, "method": method, "loss": last, "num_steps": recipe.num_steps}))
        return
    typer.echo(f"{out / gate_id}.safetensors, last loss {last:.3f}")
    typer.echo(f"Workers: HILORA_WORKER_GATES_DIR={out}   routers: HILORA_ROUTER_GATES={method}={gate_id}")


@app.command("lorahub")
def train_lorahub_command(
    testbed: TestbedOption,
    out: Annotated[Path, typer.Option("--out", help="File to write: the routers' HILORA_ROUTER_LORAHUB_WEIGHTS.")],
    task: Annotated[
        str | None, typer.Option("--task", help="A task of the testbed, whose dev lines are the examples.")
    ] = None,
    each_task: Annotated[
        bool,
        typer.Option("--each-task", help="Every task in turn: --out is a folder for `hilora bench accuracy`."),
    ] = False,
    num_examples: Annotated[int, typer.Option("--examples", min=1, help="How many of them.")] = 5,
    num_adapters: Annotated[int, typer.Option("--adapters", min=2, help="How many take part, drawn by seed.")] = 20,
    evaluations: Annotated[int, typer.Option("--evaluations", min=2, help="Forward passes over the examples.")] = 200,
    excludes: Annotated[
        list[str] | None, typer.Option("--exclude", help="An adapter that must not take part; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search factors of adapters that make a few examples likeliest, without gradients."""
    from rich.console import Console

    from hilora_lab.training.lorahub import LorahubRecipe, draw_adapters, learn_weights, write_weights

    if (task is None) is not each_task:
        raise typer.BadParameter("either --task or --each-task", param_hint="--task")
    if task is None:
        if excludes:
            raise typer.BadParameter("is for --task: with --each-task own adapters go", param_hint="--exclude")
        recipe = LorahubRecipe(num_evaluations=evaluations, seed=seed)
        _learn_each_task(testbed, out, num_examples, num_adapters, recipe, as_json=as_json)
        return
    opened = _opened(testbed, also=task)
    drawn = draw_adapters(set(opened.adapters) - set(excludes or ()), num_adapters, seed=seed)
    with Console(stderr=True).status("Searching") as status:
        learned = learn_weights(
            opened.model,
            {name: opened.adapters[name] for name in drawn},
            opened.asked[:num_examples],
            recipe=LorahubRecipe(num_evaluations=evaluations, seed=seed),
            on_progress=lambda done, total, best: status.update(f"Searching: {done} of {total}, best {best:.3f}"),
        )
    write_weights(learned, out)
    if as_json:
        found = {"loss": learned.loss, "base_loss": learned.base_loss, "weights": dict(learned.weights)}
        typer.echo(json.dumps(found))
        return
    largest = sorted(learned.weights.items(), key=lambda pair: -abs(pair[1]))[:5]
    typer.echo(f"{out}: loss {learned.loss:.3f}, of the base alone {learned.base_loss:.3f}")
    typer.echo(f"Largest: {', '.join(f'{weight:.2f} x {one}' for one, weight in largest)}")


def _learn_each_task(
    testbed: Path, out: Path, num_examples: int, num_adapters: int, recipe: LorahubRecipe, *, as_json: bool
) -> None:
    from rich.console import Console

    from hilora_lab.training.lorahub_tasks import learn_each_task

    opened = _opened(testbed)
    with Console(stderr=True).status("Searching") as status:
        written = learn_each_task(
            opened.model,
            opened.adapters,
            {name: opened.tokenized(name, "dev")[:num_examples] for name in opened.task_names},
            out,
            num_drawn=num_adapters,
            recipe=recipe,
            on_task=lambda name, done, total: status.update(f"Searching: {name}, {done} of {total}"),
        )
    typer.echo(json.dumps({"files": written}) if as_json else f"{out}: {len(written)} files")


class _Opened:
    """A testbed, loaded for training."""

    def __init__(self, testbed: Testbed, also: str | None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hilora_lab.evaluation.gated_model import read_adapter_folder

        self._testbed = testbed
        self._tokenizer = AutoTokenizer.from_pretrained(testbed.base_folder)
        self.model = AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval()
        self.adapters: Mapping[str, LoRAAdapter] = {
            name: read_adapter_folder(testbed.adapter_folder(name)) for name in testbed.adapter_names
        }

        self.task_names = testbed.task_names
        self.examples = {name: self.tokenized(name, "fit") for name in self.adapters}
        self.asked = [] if also is None else self.tokenized(also, "dev")

    def tokenized(self, task: str, split: Split) -> list[TokenizedExample]:
        """A task's lines of one split."""
        from hilora_lab.testbed.batches import tokenize_example
        from hilora_lab.testbed.tasks import Example

        lines = self._testbed.lines_of(task, split)
        return [tokenize_example(self._tokenizer, Example(prompt=line.prompt, answer=line.answer)) for line in lines]


def _opened(folder: Path, *, also: str | None = None) -> _Opened:
    from transformers.utils import logging as transformers_logging

    from hilora_lab.testbed.folder import read_testbed

    transformers_logging.disable_progress_bar()
    testbed = read_testbed(folder)
    if also is not None:
        # Refuses a task that the testbed does not have.
        testbed.family_of(also)
    return _Opened(testbed, also)
