"""The `hilora` command and its groups."""

from __future__ import annotations

import typer

from hilora_cli import adapters, bench, keys, lab, train
from hilora_cli.backup import backup, restore
from hilora_cli.chat import chat
from hilora_cli.demo import demo
from hilora_cli.evaluate import evaluate
from hilora_cli.failure import reported_errors
from hilora_cli.generate import generate
from hilora_cli.route import route
from hilora_cli.route_log import route_log
from hilora_cli.serve import serve

app = typer.Typer(
    name="hilora",
    help="One endpoint that turns a pool of LoRA adapters into a model that generalises.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve)
app.command("demo")(demo)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.command("backup")(backup)
app.command("restore")(restore)
app.command("route")(route)
app.command("route-log")(route_log)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("eval")(evaluate)
app.add_typer(lab.app, name="lab")
app.add_typer(train.app, name="train")
app.add_typer(bench.app, name="bench")


@app.command("version")
def show_version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print(version("hilora-serve"))


def main() -> None:
    """Entry point of the `hilora` command."""
    with reported_errors():
        app()
