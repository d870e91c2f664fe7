"""The promise of `RateLimiter`, kept in memory and by Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from hilora.errors import RateLimited
from services.common.inference_keys import KeyLimits
from services.router.infra.local_rate_limiter import LocalRateLimiter
from services.router.infra.redis_rate_limiter import RedisRateLimiter
from services.router.limits import Ask
from tests.builders.redis_server import redis_server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["in memory", "redis"])
async def limiter(request):
    if request.param == "in memory":
        yield LocalRateLimiter()
        return
    client = Redis.from_url(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield RedisRateLimiter(client, local=LocalRateLimiter())
    await client.aclose()


def ask(*, caller="ann", num_tokens=10, lease_seconds=60.0, **limits):
    return Ask(caller=caller, limits=KeyLimits(**limits), num_tokens=num_tokens, lease_seconds=lease_seconds)


async def refusal(limiter, wanted):
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(wanted)
    return refused.value


class TestRequests:
    async def test_so_many_and_no_more(self, limiter):
        wanted = ask(requests_per_minute=3)
        left = [(await limiter.admit(wanted)).standing.remaining_requests for _ in range(3)]
        refused = await refusal(limiter, wanted)
        assert left == [2, 1, 0]
        assert (refused.code, refused.place) == ("rate_limit_exceeded", "requests_per_minute")
        assert 58 <= refused.retry_after_seconds <= 62

    async def test_callers_have_counts_of_their_own(self, limiter):
        await limiter.admit(ask(requests_per_minute=1))
        await limiter.admit(ask(caller="bob", requests_per_minute=1))
        assert await refusal(limiter, ask(requests_per_minute=1))

    async def test_many_at_once_do_not_share_the_last_place(self, limiter):
        wanted = ask(requests_per_minute=5)
        ended = await asyncio.gather(*(limiter.admit(wanted) for _ in range(20)), return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in ended) == 5


class TestTokens:
    async def test_the_guess_counts_until_the_truth_is_known(self, limiter):
        wanted = ask(num_tokens=60, tokens_per_minute=100)
        grant = await limiter.admit(wanted)
        assert grant.standing.remaining_tokens == 40
        assert (await refusal(limiter, wanted)).place == "tokens_per_minute"
        await limiter.settle(grant, num_tokens=20)
        assert (await limiter.admit(wanted)).standing.remaining_tokens == 20

    async def test_what_was_taken_beyond_the_guess_counts_too(self, limiter):
        grant = await limiter.admit(ask(num_tokens=10, tokens_per_minute=100))
        await limiter.settle(grant, num_tokens=250)
        assert await refusal(limiter, ask(num_tokens=1, tokens_per_minute=100))

    async def test_more_than_the_limit_is_let_in_alone(self, limiter):
        wanted = ask(num_tokens=500, tokens_per_minute=100)
        assert (await limiter.admit(wanted)).standing.remaining_tokens == 0
        assert await refusal(limiter, wanted)

    async def test_a_day_has_a_limit_of_its_own(self, limiter):
        await limiter.admit(ask(num_tokens=90, tokens_per_day=100))
        refused = await refusal(limiter, ask(num_tokens=20, tokens_per_day=100))
        assert refused.place == "tokens_per_day"
        assert refused.retry_after_seconds > 3600

    async def test_a_refusal_counts_nothing(self, limiter):
        limits = {"requests_per_minute": 2, "tokens_per_minute": 10}
        await limiter.admit(ask(num_tokens=10, **limits))
        for _ in range(3):
            await refusal(limiter, ask(num_tokens=10, **limits))
        await refusal(limiter, ask(num_tokens=1, **limits))
        assert (await limiter.admit(ask(requests_per_minute=2))).standing.remaining_requests == 0


class TestConcurrency:
    async def test_a_place_is_free_again_when_a_request_ends(self, limiter):
        wanted = ask(max_concurrent=2)
        first, _ = await limiter.admit(wanted), await limiter.admit(wanted)
        assert (await refusal(limiter, wanted)).place == "max_concurrent"
        await limiter.settle(first, num_tokens=0)
        await limiter.admit(wanted)

    async def test_a_router_that_died_holds_its_places_for_a_while_only(self, limiter):
        await limiter.admit(ask(max_concurrent=1, lease_seconds=0.2))
        assert await refusal(limiter, ask(max_concurrent=1))
        await asyncio.sleep(0.3)
        await limiter.admit(ask(max_concurrent=1))


class TestTime:
    async def test_no_window_ever_holds_more_than_the_limit(self):
        now = [1_000_000.0]
        limiter = LocalRateLimiter(unix_time=lambda: now[0])
        admitted = []
        for step in range(3_000):
            now[0] = 1_000_000.0 + step * 0.07
            try:
                await limiter.admit(ask(requests_per_minute=50))
                admitted.append(now[0])
            except RateLimited:
                continue
        for place, moment in enumerate(admitted):
            inside = [other for other in admitted[place:] if other < moment + 60.0]
            assert len(inside) <= 50
        # At most one slot of 61 is given away.
        assert len(admitted) >= 50 * (now[0] - 1_000_000.0) / 61.0

    async def test_there_is_room_when_the_refusal_says_so(self):
        now = [1_000_000.3]
        limiter = LocalRateLimiter(unix_time=lambda: now[0])
        await limiter.admit(ask(requests_per_minute=1))
        seconds = (await refusal(limiter, ask(requests_per_minute=1))).retry_after_seconds
        now[0] += seconds - 0.01
        await refusal(limiter, ask(requests_per_minute=1))
        now[0] += 0.02
        await limiter.admit(ask(requests_per_minute=1))


class TestRedisAway:
    async def test_each_router_counts_for_itself_and_quickly(self, tmp_path):
        client = Redis.from_url(f"unix://{tmp_path}/nobody.sock")
        limiter = RedisRateLimiter(client, local=LocalRateLimiter())
        started = time.monotonic()
        grants = [await limiter.admit(ask(requests_per_minute=2)) for _ in range(2)]
        refused = await refusal(limiter, ask(requests_per_minute=2))
        for grant in grants:
            await limiter.settle(grant, num_tokens=1)
        assert refused.place == "requests_per_minute"
        assert not limiter.is_shared
        assert time.monotonic() - started < 5
        await client.aclose()
