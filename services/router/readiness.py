"""Whether this router can answer, and which part is missing if not."""

from __future__ import annotations

from dataclasses import dataclass, field

from hilora.errors import RegistryUnavailable
from services.router.ports import Catalog, TextEmbedder, Workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """One sentence per part, for a person or a probe."""

    can_route: bool
    """Encoder and catalogue are there."""
    can_generate: bool
    """`can_route`, and a worker stands at the catalogue."""
    missing: tuple[str, ...]
    """What keeps the router from generating."""
    parts: dict[str, str] = field(default_factory=dict[str, str])
    """State of each part."""


def check_readiness(*, embedder: TextEmbedder, catalog: Catalog, workers: Workers) -> Readiness:
    """Look at every part without waiting for any."""
    parts: dict[str, str] = {}
    missing: list[str] = []

    encoder_id = embedder.encoder_id
    parts["encoder"] = encoder_id or "loading"
    if encoder_id is None:
        missing.append("encoder")

    needed_generation = 0
    try:
        view = catalog.view()
    except RegistryUnavailable as error:
        parts["catalog"] = error.message
        missing.append("catalog")
    else:
        needed_generation = view.catalog_generation
        parts["catalog"] = f"generation {view.catalog_generation}, {len(view.adapters)} adapters"
        if view.ignored:
            parts["ignored"] = f"{len(view.ignored)} adapters, among them: {next(iter(view.ignored.values()))}"
    parts["registry"] = "following" if catalog.is_following else "away"
    can_route = not missing

    fleet = workers.fleet()
    parts["workers"] = (
        f"{fleet.num_live} of {fleet.num_configured} live, catalogue generation {fleet.highest_catalog_generation}"
    )
    if fleet.num_live == 0 or fleet.highest_catalog_generation < needed_generation:
        missing.append("workers")
    return Readiness(can_route=can_route, can_generate=not missing, missing=tuple(missing), parts=parts)
