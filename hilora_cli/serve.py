"""`hilora serve`: the whole system in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hilora_cli.adapter_upload import AdapterUpload
    from services.standalone.settings import StandaloneSettings

HostOption = Annotated[str, typer.Option("--host", help="Address to bind. Anything but loopback needs --admin-key.")]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to bind; 0 takes a free one.")]
RpcPortOption = Annotated[
    int, typer.Option("--rpc-port", min=0, max=65535, help="Port of the gRPC RouterService; 0 takes a free one.")
]
AdminKeyOption = Annotated[
    str | None,
    typer.Option("--admin-key", envvar="HILORA_STANDALONE_ADMIN_API_KEY", help="Bearer key of the adapter routes."),
]


def serve(
    base: Annotated[str, typer.Option("--base", help="The base model: a folder or a hub id.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Folder of all that must survive.")],
    port: PortOption = 8000,
    rpc_port: RpcPortOption = 0,
    host: HostOption = "127.0.0.1",
    adapters: Annotated[
        list[Path] | None,
        typer.Option("--adapters", help="An adapter, or a folder of them, to register; may be repeated."),
    ] = None,
    admin_key: AdminKeyOption = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", exists=True, dir_okay=False, help="Keys of those who may ask; `hilora keys create` makes one."
        ),
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let everybody ask, on an address that is not loopback.")
    ] = False,
) -> None:
    """Serve a base model and its adapters until SIGTERM or Ctrl-C."""
    from pydantic import SecretStr

    from hilora_cli.pool_seeding import uploads_of
    from services.standalone.settings import StandaloneSettings

    uploads = [upload for folder in adapters or [] for upload in uploads_of(folder)]
    access: dict[str, Any] = {}
    if api_keys is not None:
        access["api_keys_file"] = api_keys
    if allow_anonymous:
        access["allow_anonymous"] = True
    settings = StandaloneSettings(
        base_model=base,
        data_dir=data_dir,
        host=host,
        port=port,
        rpc_port=rpc_port,
        admin_api_key=SecretStr(admin_key) if admin_key else None,
        **access,
    )

    def announce(url: str, rpc_address: str) -> None:
        print(f"HiLoRA Serve listens on {url}, gRPC on {rpc_address}", flush=True)

    run_system(settings, uploads=uploads, announce=announce)


def run_system(
    settings: StandaloneSettings, *, uploads: Sequence[AdapterUpload], announce: Callable[[str, str], None]
) -> None:
    """Start everything, register what is missing, announce the address, serve until a signal, drain.

    Raises:
        HiloraError: it cannot start.
        OSError: the address cannot be bound, or the data folder cannot be written.
    """
    import asyncio

    from hilora.errors import InvalidInput
    from hilora_cli.opening import Opening
    from services.common.imports import leave_out_training_packages
    from services.common.lifecycle import ComponentGroup, run_until_signal
    from services.common.log import configure_logging

    leave_out_training_packages()
    configure_logging(service="standalone", level=settings.log_level)
    _hide_loading_bars()
    # Half a minute of imports may follow: what can be refused is refused first.
    try:
        from services.standalone.bootstrap import build_standalone

        standalone = build_standalone(settings)
    except ValueError as error:
        raise InvalidInput(str(error), code="invalid_setting") from error
    key = settings.admin_api_key.get_secret_value() if settings.admin_api_key else None
    opening = Opening(standalone, uploads=uploads, admin_key=key, announce=announce)
    asyncio.run(run_until_signal(ComponentGroup([standalone, opening]), grace_seconds=settings.drain_seconds))


def _hide_loading_bars() -> None:
    """Each model that loads draws one on standard error, which is our log."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
