"""What a view of the catalogue says of its fit."""

from __future__ import annotations

from dataclasses import replace

from hilora.sequence_routing import AdapterProfile
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_ports import catalog_view

_TEXTS = {"capitals": ["country capital 1", "country capital 2"], "sums": ["add 1 and 2", "add 3 and 4"]}


class TestFit:
    def test_a_fit_of_this_generation_is_the_whole_catalogue(self):
        assert catalog_view(_TEXTS).is_fitted

    def test_a_fit_of_an_earlier_generation_is_not(self):
        assert not catalog_view(_TEXTS, catalog_generation=3, router_generation=2).is_fitted

    def test_neither_is_one_that_was_extended_by_newcomers(self):
        view = catalog_view(_TEXTS)
        newcomer = AdapterProfile(
            adapter_id="poems@1",
            adapter_name="poems",
            lora_rank=8,
            samples_ME=HashEncoder().encode(["a poem of spring", "a poem of rain"]),
        )
        extended = view.router.extended([newcomer], catalog_generation=1)
        assert not replace(view, router=extended).is_fitted
