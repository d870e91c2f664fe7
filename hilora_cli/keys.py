"""`hilora keys`: who may ask for answers. Keeps the file that `HILORA_ROUTER_API_KEYS_FILE` names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.common.inference_keys import InferenceKey

app = typer.Typer(
    help="The keys of those who may ask for answers. Servers see a change of the file within a second.",
    no_args_is_help=True,
)

FileOption = Annotated[
    Path, typer.Option("--file", envvar="HILORA_ROUTER_API_KEYS_FILE", dir_okay=False, help="The file with the keys.")
]
KeyName = Annotated[str, typer.Argument(help="Who holds the key.")]


@app.command("create")
def create(
    name: KeyName,
    file: FileOption,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="On whose behalf its requests come. [default: nobody's]")
    ] = None,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="infer or read; may be repeated. [default: both]")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option("--requests-per-minute", min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option("--tokens-per-minute", min=1)] = None,
    tokens_per_day: Annotated[int | None, typer.Option("--tokens-per-day", min=1)] = None,
    max_concurrent: Annotated[int | None, typer.Option("--max-concurrent", min=1)] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="How long it is good. [default: for ever]")
    ] = None,
) -> None:
    """Make a key, put its digest into the file, and print the key: this once, for it is kept nowhere."""
    from pydantic import ValidationError

    from services.common.auth import digest_of_key
    from services.common.inference_keys import InferenceKey, InferenceScope, KeyLimits, new_key

    known = _read(file)
    if any(key.name == name for key in known):
        raise typer.BadParameter(f"{file} has a key of {name!r} already; revoke it first, or choose another name.")
    secret = new_key()
    try:
        record = InferenceKey(
            name=name,
            sha256=digest_of_key(secret),
            scopes=frozenset(InferenceScope(scope) for scope in scopes) if scopes else frozenset(InferenceScope),
            tenant=tenant,
            limits=KeyLimits(
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                tokens_per_day=tokens_per_day,
                max_concurrent=max_concurrent,
            ),
            expires_at=datetime.now(UTC) + timedelta(days=days) if days is not None else None,
        )
    except ValidationError as error:
        finding = error.errors()[0]
        raise typer.BadParameter(f"{finding['loc'][0]}: {finding['msg']}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _write(file, [*known, record])
    print(secret)


@app.command("list")
def list_keys(file: FileOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show who has a key."""
    from services.common.inference_keys import KEY_LIST

    keys = _read(file)
    if as_json:
        print(KEY_LIST.dump_json(tuple(keys), exclude_none=True, indent=2).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "tenant", "scopes", "limits", "expires")
    for key in keys:
        limits = ", ".join(f"{value} {what}" for what, value in key.limits.model_dump(exclude_none=True).items())
        expires = key.expires_at.isoformat(timespec="minutes") if key.expires_at else ""
        table.add_row(key.name, key.tenant or "", " ".join(sorted(key.scopes)), limits.replace("_", " "), expires)
    Console().print(table)


@app.command("revoke")
def revoke(name: KeyName, file: FileOption) -> None:
    """Take a key out of the file: from then on it opens nothing."""
    known = _read(file)
    kept = [key for key in known if key.name != name]
    if len(kept) == len(known):
        raise typer.BadParameter(f"{file} has no key of {name!r}.")
    _write(file, kept)
    print(f"{name} revoked")


def _read(file: Path) -> list[InferenceKey]:
    from services.common.inference_keys import InferenceKeyFile

    return list(InferenceKeyFile(file).current()) if file.exists() else []


def _write(file: Path, keys: list[InferenceKey]) -> None:
    """In one step: no server ever reads half a file. Only its owner may read it."""
    import os
    import tempfile

    from services.common.inference_keys import KEY_LIST

    descriptor, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(KEY_LIST.dump_json(tuple(keys), exclude_none=True, indent=2) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
