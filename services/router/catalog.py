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

_MAX_REMEMBERED_REQUESTERS = 256
_NO_TAGS: frozenset[str] = frozenset()


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
    tags: tuple[str, ...] = ()
    """Words by which requests restrict the pool; those of the name, as far as versions go."""

    def selected(self, selector: str) -> CatalogAdapter | None:
        """A version of the same name, under the access of the name now; None if there is none."""
        found = select_version((self, *self.other_versions), selector)
        return None if found is None else replace(found, access=self.access)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sight:
    """What a requester does not see of a view."""

    hidden: frozenset[str]
    closed: frozenset[str]
    can_choose: bool


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
    rules: frozenset[AdapterAccess] | None = None
    """Under which the adapters stand, each once; None leaves it to be found out."""

    @property
    def is_fitted(self) -> bool:
        """Whether the choice is fitted to every adapter, newcomers included."""
        return self.router_generation == self.catalog_generation and not self.router.num_newcomers

    def hidden_from(self, requester: Requester) -> frozenset[str]:
        """Names that do not exist for a requester."""
        return self._sight_of(requester).hidden

    def closed_to(self, requester: Requester, *, tags: frozenset[str] = _NO_TAGS) -> frozenset[str]:
        """Names that must not be chosen for a requester: hidden ones, those that are gone, and those that lack one of
        the tags. Always the same object for the same requester and tags, so that it can be remembered what it means in
        the fit."""
        return self._sight_of(requester, tags).closed

    def can_choose(self, requester: Requester, *, tags: frozenset[str] = _NO_TAGS) -> bool:
        """Whether the fit knows any adapter that exists for a requester and bears all of the tags."""
        return self._sight_of(requester, tags).can_choose

    def has_version(self, adapter_name: str, adapter_id: str) -> bool:
        """Whether a version of an adapter can be named."""
        adapter = self.adapters.get(adapter_name)
        if adapter is None:
            return False
        return adapter_id == adapter.adapter_id or any(
            other.adapter_id == adapter_id for other in adapter.other_versions
        )

    def _sight_of(self, requester: Requester, tags: frozenset[str] = _NO_TAGS) -> _Sight:
        sight = self._remembered.get((requester, tags))
        if sight is None:
            if len(self._remembered) >= _MAX_REMEMBERED_REQUESTERS:
                self._remembered.clear()
            hidden = _hidden(self.adapters, requester, self.rules)
            untagged = _untagged(self.adapters, tags)
            closed = self.gone | hidden | untagged
            sight = _Sight(hidden=hidden, closed=closed, can_choose=not self.fitted_names <= closed)
            self._remembered[requester, tags] = sight
        return sight

    @cached_property
    def _remembered(self) -> dict[tuple[Requester, frozenset[str]], _Sight]:
        return {}


def _hidden(
    adapters: Mapping[str, CatalogAdapter], requester: Requester, rules_of_all: frozenset[AdapterAccess] | None
) -> frozenset[str]:
    if rules_of_all is not None and all(access.admits(requester) for access in rules_of_all):
        return frozenset()
    # Thousands of adapters share a few rules, mostly as one object: each is asked once.
    rules = {id(adapter.access): adapter.access for adapter in adapters.values()}
    closed = {key for key, access in rules.items() if not access.admits(requester)}
    if not closed:
        return frozenset()
    return frozenset(name for name, adapter in adapters.items() if id(adapter.access) in closed)


def _untagged(adapters: Mapping[str, CatalogAdapter], tags: frozenset[str]) -> frozenset[str]:
    if not tags:
        return frozenset()
    return frozenset(name for name, adapter in adapters.items() if not tags.issubset(adapter.tags))
