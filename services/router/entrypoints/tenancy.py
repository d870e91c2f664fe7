"""On whose behalf a request comes, as far as its sender may say so."""

from __future__ import annotations

from hilora.access import check_tenant
from hilora.errors import InvalidInput

TENANT_HEADER = "X-HiLoRA-Tenant"
"""Set by a proxy in front of the router that knows its clients."""


def tenant_of(presented: str | None, *, is_trusted: bool) -> str | None:
    """The tenant of a request; None sees only what everybody sees.

    Args:
        presented: what the request says; None or empty if it says nothing.
        is_trusted: whether senders may say it: the setting `trust_tenant_header`.

    Raises:
        InvalidInput: `tenant_not_accepted`, rather than serving one tenant as another in silence; `invalid_tenant`.
    """
    if not presented:
        return None
    if not is_trusted:
        raise InvalidInput(
            "This router does not let its clients name a tenant.",
            code="tenant_not_accepted",
            remedy=(
                f"Leave {TENANT_HEADER} out; the operator sets HILORA_ROUTER_TRUST_TENANT_HEADER where a proxy in "
                "front of the router sets the header itself."
            ),
            place=TENANT_HEADER,
        )
    return check_tenant(presented)
