"""A hundred thousand random requests of six tenants: none reaches an adapter that its tenant may not use."""

from __future__ import annotations

import random

from hilora.access import AdapterAccess, Requester
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.routing_plan import RoutingMode
from services.router.models import ModelDirectory
from services.router.routing_options import RoutingOptions
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_ports import FakeEmbedder, FakeWorkers, InMemoryCatalog, catalog_view, route_text

NUM_REQUESTS = 100_000
TENANTS = [f"tenant-{number}" for number in range(6)]


class RememberingEmbedder(FakeEmbedder):
    """Embeds each text once: it is the choice that is tried here."""

    def __init__(self):
        super().__init__()
        self._known = {}

    async def embed(self, text):
        if text not in self._known:
            self._known[text] = HashEncoder().encode([text])[0]
        return self._known[text]


def random_pool(rng, *, num_adapters=48):
    """Adapters whose tasks share words, each open to everybody or to some tenants."""
    words = [f"word{number}" for number in range(30)]
    texts = {
        f"task-{number}": [" ".join(rng.choices(words, k=4)) + f" own{number}" for _ in range(4)]
        for number in range(num_adapters)
    }
    access = {name: AdapterAccess(visible_to=tuple(sorted(rng.sample(TENANTS, rng.randint(0, 3))))) for name in texts}
    return texts, access


async def test_no_tenant_ever_reaches_another_s_adapter():
    rng = random.Random(20_251_012)
    texts, access = random_pool(rng)
    asked = [text for samples in texts.values() for text in samples]
    aliases = {f"alias-{number}": f"task-{number}" for number in range(0, 48, 5)}
    view = catalog_view(texts, access=access, aliases=aliases)
    catalog = InMemoryCatalog(view)
    models = ModelDirectory(catalog=catalog, workers=FakeWorkers(), base_model_name="tiny")
    use_case = route_text(catalog, embedder=RememberingEmbedder(), models=models)
    names = [*texts, *aliases, "base", *["auto"] * 200]
    num_adapters_used = num_hidden = 0
    for _ in range(NUM_REQUESTS):
        tenant = rng.choice([None, *TENANTS])
        options = RoutingOptions(
            model=rng.choice(names),
            tenant=tenant,
            mode=rng.choice([None, None, None, RoutingMode.PAPER]),
            max_candidates=rng.choice([None, 1, 8]),
            exclude_adapters=frozenset(rng.sample(list(texts), rng.choice([0, 0, 3]))),
            seed=rng.randint(0, 9),
        )
        try:
            decision = (await use_case.route(rng.choice(asked), options, num_runners_up=8)).decision
        except UnknownAdapter:
            num_hidden += 1
            continue
        except InvalidInput:
            # Named and excluded at once.
            assert options.exclude_adapters
            continue
        requester = Requester(tenant=tenant)
        for used in (*decision.plan.budgets, *decision.candidates):
            assert access[used.adapter_name].admits(requester), (tenant, used.adapter_name)
        num_adapters_used += len(decision.plan.budgets)
    assert num_adapters_used > NUM_REQUESTS / 2
    assert num_hidden > NUM_REQUESTS / 100
