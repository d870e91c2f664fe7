"""What a router keeps of a catalogue, change by change, is what it would keep of the whole at once."""

from __future__ import annotations

import random

import numpy as np

from hilora.access import AdapterAccess, TrustTier
from hilora.sequence_routing import AdapterProfile
from services.router.catalog import CatalogAdapter
from services.router.infra.catalog_contents import Arrival, CatalogContents
from services.router.infra.catalog_entry import ReplicatedEntry

SAMPLES = np.ones((1, 4), dtype=np.float32)
RULES = [AdapterAccess(), AdapterAccess(trust_tier=TrustTier.TRUSTED), AdapterAccess(visible_to=("acme",))]


def arrival(name: str, *, version: int = 1, placed: bool = True, rule: int = 0, ignored: str | None = None) -> Arrival:
    adapter = CatalogAdapter(
        adapter_id=f"{name}-{version}",
        adapter_name=name,
        revision="r",
        lora_rank=8,
        created_at=0.0,
        version=version,
        access=RULES[rule],
    )
    profile = AdapterProfile(adapter_id=adapter.adapter_id, adapter_name=name, lora_rank=8, samples_ME=SAMPLES)
    entry = ReplicatedEntry(adapter=adapter, profile=profile if placed else None, encoder_id="e" if placed else "")
    return Arrival(adapter_name=name, entry=entry, ignored=ignored)


class TestContents:
    def test_what_cannot_be_used_supersedes_what_could(self):
        contents = CatalogContents([arrival("a"), arrival("b")])
        contents.put(Arrival(adapter_name="a", entry=None, ignored="broken"))

        assert contents.adapters.keys() == contents.entries.keys() == contents.profiles.keys() == {"b"}
        assert contents.ignored == {"a": "broken"}

        contents.put(arrival("a", version=2))
        assert contents.adapters["a"].version == 2
        assert contents.ignored == {}

    def test_who_came_or_went_is_told_until_it_is_cleared(self):
        contents = CatalogContents([arrival("a"), arrival("b", placed=False)])
        assert contents.moved == {"a"}
        contents.moved.clear()

        contents.remove("nobody")
        contents.put(arrival("c", placed=False))
        assert contents.moved == set()
        contents.remove("a")
        contents.put(arrival("b"))
        assert contents.moved == {"a", "b"}

    def test_rules_are_those_of_the_adapters_that_are_there(self):
        contents = CatalogContents([arrival("a"), arrival("b", rule=1), arrival("c", rule=1)])
        assert contents.rules == {RULES[0], RULES[1]}
        contents.remove("b")
        assert contents.rules == {RULES[0], RULES[1]}
        contents.put(arrival("c", rule=2))
        assert contents.rules == {RULES[0], RULES[2]}

    def test_any_row_of_changes_ends_where_a_snapshot_would(self):
        rng = random.Random(0)
        contents = CatalogContents()
        last: dict[str, Arrival] = {}
        for step in range(2_000):
            name = f"adapter-{rng.randrange(30)}"
            if rng.random() < 0.3:
                contents.remove(name)
                last.pop(name, None)
                continue
            news = arrival(
                name, version=step, placed=rng.random() < 0.7, rule=rng.randrange(3), ignored=rng.choice([None, "why"])
            )
            if rng.random() < 0.1:
                news = Arrival(adapter_name=name, entry=None, ignored="broken")
            contents.put(news)
            last[name] = news
        expected = CatalogContents(last.values())

        assert contents.entries == expected.entries
        assert contents.adapters == expected.adapters
        assert contents.profiles == expected.profiles
        assert contents.ignored == expected.ignored
        assert contents.rules == expected.rules
