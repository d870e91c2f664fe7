"""What happens between "the server answers" and "please come in": its pool is registered, then it is announced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hilora.errors import HiloraError
from hilora_cli.adapter_upload import AdapterUpload
from hilora_cli.api_client import ApiClient
from hilora_cli.failure import print_failure
from hilora_cli.pool_seeding import missing_from, seed

_CATALOG_POLL_SECONDS = 0.05
_FIT_SECONDS = 30.0
"""What waits longer is announced all the same: a pool of thousands is routed in before its fit."""


class HasAddress(Protocol):
    """A started server."""

    @property
    def address(self) -> str:
        """`host:port` of HTTP."""
        ...

    @property
    def rpc_address(self) -> str:
        """`host:port` of gRPC."""
        ...

    @property
    def adapter_names(self) -> frozenset[str]:
        """Adapters that requests can name by now."""
        ...

    @property
    def has_fitted(self) -> bool:
        """Whether the choice is fitted to all of them."""
        ...


class Opening:
    """The last component of a served system; see the module.

    Args:
        server: started before this.
        uploads: adapters that should be in the pool.
        admin_key: bearer key of the adapter routes.
        announce: called with the server's URL and its gRPC address when everything is in place.
    """

    def __init__(
        self,
        server: HasAddress,
        *,
        uploads: Sequence[AdapterUpload],
        admin_key: str | None,
        announce: Callable[[str, str], None],
    ) -> None:
        self._server = server
        self._uploads = tuple(uploads)
        self._admin_key = admin_key
        self._announce = announce

    async def start(self) -> None:
        """Register the uploads that are missing, with a progress bar; a refused one is reported and left out."""
        url = f"http://{self._server.address}"
        async with ApiClient(url, api_key=self._admin_key) as client:
            missing = await missing_from(client, self._uploads) if self._uploads else []
            if missing:
                await self._register(client, missing)
        self._announce(url, self._server.rpc_address)

    async def stop(self, *, grace_seconds: float) -> None:
        """Nothing is held after `start`."""

    async def _register(self, client: ApiClient, missing: Sequence[AdapterUpload]) -> None:
        columns = (TextColumn("Registering adapters"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        seeded: list[str] = []
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("seeding", total=len(missing))

            def on_seeded(name: str, failure: HiloraError | None) -> None:
                progress.advance(bar)
                if failure is None:
                    seeded.append(name)
                else:
                    print_failure(f"{name} was left out: {failure.message}", failure.remedy, code=failure.code)

            await seed(client, missing, on_seeded=on_seeded)
        await self._wait_until_fitted(seeded)

    async def _wait_until_fitted(self, names: Sequence[str]) -> None:
        """The router follows the catalogue a moment later, and fits its choice to it; who reads the news may ask
        at once."""
        deadline = asyncio.get_running_loop().time() + _FIT_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if self._server.adapter_names.issuperset(names) and self._server.has_fitted:
                return
            await asyncio.sleep(_CATALOG_POLL_SECONDS)
