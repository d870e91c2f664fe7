"""Who may use an adapter: how far it is trusted, and which tenants see it.

An adapter that a requester may not use does not exist for them: it is neither chosen, nor named, nor listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from hilora.errors import InvalidInput

TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""The same as an adapter's name: safe in headers, URLs and logs."""


class TrustTier(StrEnum):
    """How far an operator vouches for an adapter, lowest first."""

    UNTRUSTED = "untrusted"
    """From anybody; used only where a request accepts every tier."""
    COMMUNITY = "community"
    """Passed every check, but nobody answers for it."""
    TRUSTED = "trusted"
    """Somebody of ours answers for it."""

    def is_at_least(self, other: TrustTier) -> bool:
        """Whether this tier stands as high as another."""
        return _ORDER.index(self) >= _ORDER.index(other)


_ORDER = tuple(TrustTier)


@dataclass(frozen=True, kw_only=True, slots=True)
class Requester:
    """On whose behalf adapters are looked at."""

    tenant: str | None = None
    """None sees only what every tenant sees."""
    min_trust_tier: TrustTier = TrustTier.UNTRUSTED
    """Adapters below are passed over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterAccess:
    """Who may use one adapter; the same for all its versions."""

    trust_tier: TrustTier = TrustTier.COMMUNITY
    visible_to: tuple[str, ...] = ()
    """Tenants that may use it, sorted; empty lets everybody."""

    def admits(self, requester: Requester) -> bool:
        """Whether a requester may use the adapter."""
        is_visible = not self.visible_to or requester.tenant in self.visible_to
        return is_visible and self.trust_tier.is_at_least(requester.min_trust_tier)


def check_tenant(tenant: str) -> str:
    """Return a tenant's name unchanged if it can be one.

    Raises:
        InvalidInput: `invalid_tenant`, for a name that does not match `TENANT_PATTERN`.
    """
    if not TENANT_PATTERN.fullmatch(tenant):
        raise InvalidInput(
            f"{tenant[:128]!r} cannot be a tenant's name.",
            code="invalid_tenant",
            remedy="Use 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit.",
            place="tenant",
        )
    return tenant
