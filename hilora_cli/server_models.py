"""Which adapter versions a running server has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hilora.errors import UnknownAdapter
from hilora_cli.api_client import ApiClient


def adapter_ids_of(names: Sequence[str], url: str, api_key: str | None) -> dict[str, str]:
    """The identity of each adapter's current version.

    Raises:
        UnknownAdapter: `model_not_found`: the server does not have one of them.
        HiloraError: whatever the server answers.
    """
    return asyncio.run(_ids(names, url, api_key))


async def _ids(names: Sequence[str], url: str, api_key: str | None) -> dict[str, str]:
    async with ApiClient(url, api_key=api_key) as client:
        listed = await client.get("/v1/models")
    roots = {str(model["id"]): str(model["root"]) for model in listed["data"]}
    missing = sorted(set(names) - roots.keys())
    if missing:
        raise UnknownAdapter(
            f"The server at {url} does not have {', '.join(missing)}.",
            code="model_not_found",
            remedy="Register the testbed's adapters there first: `hilora adapters add`.",
            place="url",
        )
    return {name: roots[name] for name in names}
