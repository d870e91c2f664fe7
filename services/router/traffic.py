"""Which share of the automatic decisions each adapter takes, and an alarm when a stranger suddenly takes many.

Whoever registers an adapter with fitting sample texts attracts requests. That is the point of routing, and its abuse.
So adapters that came lately, or that nobody answers for, are watched: an alarm is raised when one of them takes more
than a fixed share of the decisions, or several times the share it had in the window before.

Decisions are counted in buckets of time, by the name of each adapter in the plan. Memory is bounded by the number of
buckets times the number of adapters that are counted apart.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hilora.access import Requester, TrustTier
from hilora.errors import RegistryUnavailable
from hilora.routing_plan import RoutingDecision, RoutingMode
from services.common.log import get_logger
from services.router.ports import Catalog

_log = get_logger(__name__)

_BUCKETS_PER_WINDOW = 30
_MAX_COUNTED_APART = 4096
"""Names of one bucket; decisions for further ones count in the total alone."""
_MAX_REPORTED = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficRules:
    """When an adapter's share is alarming."""

    window_seconds: float = 300.0
    """Shares are taken over this time, and compared with those of the same time before."""
    max_share: float = 0.5
    """A watched adapter that takes more than this share alarms."""
    max_growth: float = 5.0
    """So does one that takes more than this many times its earlier share, once that is above `growth_floor`."""
    growth_floor: float = 0.1
    """Below this share growth does not matter."""
    min_decisions: int = 50
    """Fewer decisions in a window say nothing."""
    watched_seconds: float = 86_400.0
    """An adapter is watched for this long after its version became available, if there are older ones: in a pool that
    is all new, nobody is a stranger."""
    watched_below: TrustTier = TrustTier.COMMUNITY
    """Adapters of a lower tier are always watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterTraffic:
    """One adapter's part of the traffic."""

    adapter_name: str
    num_decisions: int
    """In the window that ends now."""
    share: float
    """Of all automatic decisions of the window."""
    earlier_share: float
    """Of those of the window before; 0 without enough decisions."""
    alarm: str | None
    """Why it alarms: `share` or `growth`; None if it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficReport:
    """The traffic of the window that ends now."""

    window_seconds: float
    num_decisions: int
    """Automatic decisions, those without any adapter included."""
    adapters: tuple[AdapterTraffic, ...]
    """Largest share first, alarms before others; the largest hundred."""


@dataclass(kw_only=True, slots=True)
class _Bucket:
    idx: int
    total: int
    by_name: Counter[str]


class TrafficWatch:
    """Counts decisions and raises alarms.

    Args:
        catalog: tells since when an adapter is there, and how far it is trusted.
        rules: when a share is alarming.
        monotonic: seconds, never going back; the counting's clock.
        unix_time: Unix seconds; the catalogue's clock.
        on_alarm: called with an adapter's traffic when it begins to alarm.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        rules: TrafficRules,
        monotonic: Callable[[], float],
        unix_time: Callable[[], float],
        on_alarm: Callable[[AdapterTraffic], None] = lambda _traffic: None,
    ) -> None:
        self._catalog = catalog
        self._rules = rules
        self._monotonic = monotonic
        self._unix_time = unix_time
        self._on_alarm = on_alarm
        self._bucket_seconds = rules.window_seconds / _BUCKETS_PER_WINDOW
        self._buckets: deque[_Bucket] = deque()
        self._alarmed: dict[str, str] = {}
        self._looked_at = -1

    @property
    def alarms(self) -> Mapping[str, str]:
        """The adapters that alarm now, with the reason."""
        self.look()
        return self._alarmed

    def record(self, decision: RoutingDecision) -> None:
        """Count a decision that a request was served by. One that the client took itself does not count."""
        if decision.mode is RoutingMode.EXPLICIT:
            return
        bucket = self._bucket()
        bucket.total += 1
        for budget in decision.plan.budgets:
            if budget.adapter_name in bucket.by_name or len(bucket.by_name) < _MAX_COUNTED_APART:
                bucket.by_name[budget.adapter_name] += 1
        if bucket.idx != self._looked_at or bucket.total == self._rules.min_decisions:
            self._looked_at = bucket.idx
            self.look()

    def look(self) -> None:
        """Find out who alarms now, and say of whom it is new."""
        now, total, earlier, earlier_total = self._windows()
        found = {
            traffic.adapter_name: traffic
            for traffic in self._traffic(now, now, total, earlier, earlier_total)
            if traffic.alarm is not None
        }
        for adapter_name, traffic in found.items():
            if adapter_name not in self._alarmed:
                _log.warning(
                    "traffic_alarm",
                    adapter=adapter_name,
                    reason=traffic.alarm,
                    share=round(traffic.share, 4),
                    earlier_share=round(traffic.earlier_share, 4),
                    num_decisions=traffic.num_decisions,
                )
                self._on_alarm(traffic)
        for adapter_name in self._alarmed.keys() - found.keys():
            _log.info("traffic_alarm_over", adapter=adapter_name)
        self._alarmed = {name: traffic.alarm or "" for name, traffic in found.items()}

    def report(self, requester: Requester) -> TrafficReport:
        """The traffic of the adapters that exist for a requester.

        Raises:
            RegistryUnavailable: before the first snapshot.
        """
        hidden = self._catalog.view().hidden_from(requester)
        now, total, earlier, earlier_total = self._windows()
        names = [name for name in now if name not in hidden]
        traffic = self._traffic(names, now, total, earlier, earlier_total)
        ordered = sorted(traffic, key=lambda item: (item.alarm is None, -item.share, item.adapter_name))
        return TrafficReport(
            window_seconds=self._rules.window_seconds, num_decisions=total, adapters=tuple(ordered[:_MAX_REPORTED])
        )

    def _bucket(self) -> _Bucket:
        idx = int(self._monotonic() / self._bucket_seconds)
        if not self._buckets or self._buckets[-1].idx != idx:
            self._buckets.append(_Bucket(idx=idx, total=0, by_name=Counter()))
        while self._buckets[0].idx <= idx - 2 * _BUCKETS_PER_WINDOW:
            self._buckets.popleft()
        return self._buckets[-1]

    def _windows(self) -> tuple[Counter[str], int, Counter[str], int]:
        """Counts and totals of the window that ends now and of the one before."""
        idx = self._bucket().idx
        now: Counter[str] = Counter()
        earlier: Counter[str] = Counter()
        total = earlier_total = 0
        for bucket in self._buckets:
            if bucket.idx > idx - _BUCKETS_PER_WINDOW:
                now.update(bucket.by_name)
                total += bucket.total
            else:
                earlier.update(bucket.by_name)
                earlier_total += bucket.total
        return now, total, earlier, earlier_total

    def _traffic(
        self, names: Iterable[str], now: Counter[str], total: int, earlier: Counter[str], earlier_total: int
    ) -> list[AdapterTraffic]:
        rules = self._rules
        try:
            adapters = self._catalog.view().adapters
        except RegistryUnavailable:
            return []
        recent_after = self._unix_time() - rules.watched_seconds
        if all(adapter.created_at > recent_after for adapter in adapters.values()):
            recent_after = float("inf")
        traffic: list[AdapterTraffic] = []
        for name in names:
            adapter = adapters.get(name)
            if adapter is None:
                continue
            share = now[name] / total if total else 0.0
            earlier_share = earlier[name] / earlier_total if earlier_total >= rules.min_decisions else 0.0
            alarm = None
            is_stranger = not adapter.access.trust_tier.is_at_least(rules.watched_below)
            if total >= rules.min_decisions and (is_stranger or adapter.created_at > recent_after):
                alarm = self._alarm(share, earlier_share)
            traffic.append(
                AdapterTraffic(
                    adapter_name=name,
                    num_decisions=now[name],
                    share=share,
                    earlier_share=earlier_share,
                    alarm=alarm,
                )
            )
        return traffic

    def _alarm(self, share: float, earlier_share: float) -> str | None:
        rules = self._rules
        if share > rules.max_share:
            return "share"
        has_grown = earlier_share > 0.0 and share > rules.max_growth * earlier_share
        return "growth" if has_grown and share > rules.growth_floor else None
