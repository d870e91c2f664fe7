from __future__ import annotations

from services.router.readiness import check_readiness
from tests.fakes.router_ports import FakeEmbedder, FakeWorkers, InMemoryCatalog, catalog_view


def check(*, view=None, is_loaded=True, **worker_attributes):
    workers = FakeWorkers()
    for name, value in worker_attributes.items():
        setattr(workers, name, value)
    return check_readiness(embedder=FakeEmbedder(is_loaded=is_loaded), catalog=InMemoryCatalog(view), workers=workers)


class TestReadiness:
    def test_with_all_parts_it_can_generate(self):
        state = check(view=catalog_view({"a": ["x"]}))
        assert state.can_route
        assert state.can_generate
        assert state.missing == ()

    def test_each_missing_part_is_named(self):
        state = check(is_loaded=False, num_live=0)
        assert state.missing == ("encoder", "catalog", "workers")
        assert not state.can_route

    def test_without_workers_it_can_still_route(self):
        state = check(view=catalog_view({"a": ["x"]}), num_live=0)
        assert state.can_route
        assert not state.can_generate

    def test_a_worker_behind_the_catalogue_does_not_count(self):
        view = catalog_view({"a": ["x"]}, catalog_generation=7)
        assert check(view=view, catalog_generation=6).missing == ("workers",)
        assert check(view=view, catalog_generation=7).missing == ()

    def test_ignored_adapters_are_told(self):
        view = catalog_view({"a": ["x"]}, ignored={"b": "another encoder"})
        assert "another encoder" in check(view=view).parts["ignored"]
