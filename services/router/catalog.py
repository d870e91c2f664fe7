"""The router's picture of the catalogue: who is registered, and the fitted model that chooses among them.

Fitting takes longer than an entry takes to change, so a picture may hold entries that are newer than the fit. What
is gone from the entries is never chosen; what is new can be named at once and is chosen after the next fit. Who may use
an adapter is read from the entries, never from the fit: it holds at once, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from hilora.access import AdapterAccess, Requester
from hilora.sequence_routing import SequenceRouter
from hilora.version_selector import select_version

_EVERYBODY = Requester()
_MAX_REMEMBERED_REQUESTERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogAdapter:
    """One adapter version that requests may use, without its statistics."""

    adapter_id: str
    adapter_name: str
    revision: str
    lora_rank: int
    created_at: float
    """Unix seconds."""
    version: int = 1
    access: AdapterAccess = field(default_factory=AdapterAccess)
    other_versions: tuple[CatalogAdapter, ...] = ()
    """The other versions that can be named; empty for those themselves."""

    def selected(self, selector: str) -> CatalogAdapter | None:
        """A version of the same name, under the access of the name now; None if there is none."""
        found = select_version((self, *self.other_versions), selector)
        return None if found is None else replace(found, access=self.access)


@dataclass(frozen=True, kw_only=True)
class CatalogView:
    """The catalogue at one moment; replaced as a whole, never changed."""

    adapters: Mapping[str, CatalogAdapter]
    """By name."""
    catalog_generation: int
    """Generation of `adapters`."""
    router: SequenceRouter
    """Fitted to the adapters of `router_generation`."""
    router_generation: int
    """At most `catalog_generation`."""
    gone: frozenset[str]
    """Names the fit still knows but nobody may use any more."""
    ignored: Mapping[str, str]
    """Registered adapters that cannot be used here, or not be chosen, by name, with the reason."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """`name` or `name@version` by alias."""
    fitted_names: frozenset[str] = frozenset()
    """Names that the fit knows."""

    def hidden_from(self, requester: Requester) -> frozenset[str]:
        """Names that do not exist for a requester."""
        if requester == _EVERYBODY:
            return self._hidden_from_everybody
        remembered = self._remembered
        if requester not in remembered:
            if len(remembered) >= _MAX_REMEMBERED_REQUESTERS:
                remembered.clear()
            remembered[requester] = _hidden(self.adapters, requester)
        return remembered[requester]

    def can_choose(self, requester: Requester) -> bool:
        """Whether the fit knows any adapter that exists for a requester."""
        return bool(self.fitted_names - self.gone - self.hidden_from(requester))

    @cached_property
    def _hidden_from_everybody(self) -> frozenset[str]:
        return _hidden(self.adapters, _EVERYBODY)

    @cached_property
    def _remembered(self) -> dict[Requester, frozenset[str]]:
        return {}


def _hidden(adapters: Mapping[str, CatalogAdapter], requester: Requester) -> frozenset[str]:
    return frozenset(name for name, adapter in adapters.items() if not adapter.access.admits(requester))
