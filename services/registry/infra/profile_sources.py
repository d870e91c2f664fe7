"""Which sources of profile texts a registry has: as many as its operator gave it the means for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.common.tls import TlsIdentity
from services.registry.artifact import SamplesSource
from services.registry.infra.card_texts import CardTexts
from services.registry.infra.dataset_texts import DatasetTexts
from services.registry.infra.self_portrait import SelfPortraitTexts
from services.registry.ports import ProfileTexts


def build_profile_texts(
    preferred: Sequence[str],
    *,
    hub_cache: Path | None,
    hub_token: str | None,
    worker_address: str,
    identity: TlsIdentity | None = None,
) -> tuple[ProfileTexts, ...]:
    """The sources in order of preference.

    Args:
        preferred: values of `SamplesSource`; those without the means are left out.
        hub_cache: folder of unfinished downloads; `None` where the hub may not be asked.
        hub_token: credential for the hub.
        worker_address: `host:port`; empty where no worker may be asked.
        identity: the certificate to show to the worker; None speaks without TLS.
    """
    possible: dict[str, ProfileTexts] = {SamplesSource.CARD: CardTexts()}
    if hub_cache is not None:
        possible[SamplesSource.DATASET] = DatasetTexts(cache=hub_cache, token=hub_token)
    if worker_address:
        possible[SamplesSource.SELF_PORTRAIT] = SelfPortraitTexts(worker_address, identity=identity)
    return tuple(possible[name] for name in dict.fromkeys(preferred) if name in possible)
