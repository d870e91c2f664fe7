"""Large pools: what arrives is routed to before the next fit, and what leaves is not."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from hilora.gaussian_index import DenseGaussianIndex
from hilora.routing_settings import RoutingSettings
from services.router.infra import pool_fitter
from services.router.infra.pool_fitter import PoolFitter
from tests.builders.profiles import clustered_profiles

PROFILES = clustered_profiles(num_samples=[4] * 24, spread=0.2)


@pytest.fixture
def large_from_ten(monkeypatch):
    monkeypatch.setattr(pool_fitter, "_EXTENDED_FROM", 10)
    monkeypatch.setattr(pool_fitter, "_MAX_NEWCOMERS", 6)
    monkeypatch.setattr(pool_fitter, "_GATHER_SECONDS", 0.05)


@pytest.fixture
async def fitter(large_from_ten):
    fitted = asyncio.Event()
    it = PoolFitter(build_index=DenseGaussianIndex, on_fitted=fitted.set)
    it.fitted = fitted
    yield it
    await it.stop()


@pytest.fixture
def blas():
    """The library behind numpy's products, on two threads."""
    controller = ThreadpoolController().select(internal_api="openblas")
    assert controller.lib_controllers, "numpy's products come from OpenBLAS"
    # In a thread that ends: as long as it lives, the one that set the number last is the only one that may.
    setting = threading.Thread(target=lambda: controller.limit(limits=2))
    setting.start()
    setting.join()
    return controller


def threads_of(blas) -> set[int]:
    # Libraries on OpenMP count for each thread apart, and do not wait for one another.
    return {library["num_threads"] for library in blas.info() if library["threading_layer"] == "pthreads"}


def routed(router, profile) -> str:
    decision = router.decide(profile.samples_ME.mean(axis=0), settings=RoutingSettings())
    return decision.plan.budgets[0].adapter_name


class TestLargePools:
    async def test_a_newcomer_is_routed_to_before_the_fit_and_after_it(self, fitter):
        await fitter.current(PROFILES[:20], catalog_generation=1)
        router = await fitter.current(PROFILES[:22], catalog_generation=2)
        assert (router.num_newcomers, router.num_adapters, router.catalog_generation) == (2, 22, 2)
        assert routed(router, PROFILES[21]) == "task-21"
        await asyncio.wait_for(fitter.fitted.wait(), 20)
        router = await fitter.current(PROFILES[:22], catalog_generation=2)
        assert router.num_newcomers == 0
        assert routed(router, PROFILES[21]) == "task-21"

    async def test_what_came_during_the_background_fit_is_kept(self, fitter):
        await fitter.current(PROFILES[:20], catalog_generation=1)
        await fitter.current(PROFILES[:21], catalog_generation=2)
        router = await fitter.current(PROFILES[:23], catalog_generation=3)
        assert routed(router, PROFILES[22]) == "task-22"
        await asyncio.wait_for(fitter.fitted.wait(), 20)
        router = await fitter.current(PROFILES[:23], catalog_generation=3)
        assert {routed(router, profile) for profile in PROFILES[20:23]} == {"task-20", "task-21", "task-22"}

    async def test_a_new_version_replaces_the_one_of_the_fit(self, fitter):
        await fitter.current(PROFILES[:20], catalog_generation=1)
        changed = replace(PROFILES[3], adapter_id="task-03@ffffffffffff", lora_rank=4)
        router = await fitter.current([*PROFILES[:3], changed, *PROFILES[4:20]], catalog_generation=2)
        decision = router.decide(changed.samples_ME.mean(axis=0), settings=RoutingSettings())
        assert [budget.adapter_id for budget in decision.plan.budgets] == [changed.adapter_id]

    async def test_what_left_is_still_named_so_that_it_can_be_excluded(self, fitter):
        await fitter.current(PROFILES[:20], catalog_generation=1)
        router = await fitter.current(PROFILES[1:20], catalog_generation=2)
        assert "task-00" in router.adapter_names
        await asyncio.wait_for(fitter.fitted.wait(), 20)
        router = await fitter.current(PROFILES[1:20], catalog_generation=2)
        assert "task-00" not in router.adapter_names

    async def test_equal_profiles_of_a_new_snapshot_are_no_newcomers(self, fitter):
        await fitter.current(PROFILES[:20], catalog_generation=1)
        again = [replace(profile, samples_ME=profile.samples_ME.copy()) for profile in PROFILES[:20]]
        router = await fitter.current(again, catalog_generation=9)
        assert (router.num_newcomers, router.catalog_generation) == (0, 9)

    async def test_many_newcomers_are_fitted_at_once(self, fitter):
        await fitter.current(PROFILES[:12], catalog_generation=1)
        router = await fitter.current(PROFILES[:24], catalog_generation=2)
        assert (router.num_newcomers, router.num_adapters) == (0, 24)

    async def test_products_of_requests_do_not_wait_behind_those_of_a_fit(self, fitter, blas):
        await fitter.current(PROFILES[:9], catalog_generation=1)
        assert threads_of(blas) == {2}
        await fitter.current(PROFILES[:20], catalog_generation=2)
        assert threads_of(blas) == {1}


class TestSmallPools:
    async def test_every_change_is_fitted(self, fitter):
        await fitter.current(PROFILES[:4], catalog_generation=1)
        router = await fitter.current(PROFILES[:5], catalog_generation=2)
        assert (router.num_newcomers, router.num_adapters) == (0, 5)

    async def test_a_pool_that_cannot_be_fitted_leaves_the_last_fit(self, fitter):
        await fitter.current(PROFILES[:4], catalog_generation=1)
        strange = replace(PROFILES[4], samples_ME=np.full((2, 24), np.nan, dtype=np.float32))
        with pytest.raises(ValueError, match="finite"):
            await fitter.current([*PROFILES[:4], strange], catalog_generation=2)
        router = await fitter.current(PROFILES[:4], catalog_generation=3)
        assert router.num_adapters == 4
