"""What clients ask of the choice, and what answers and dry runs tell of it."""

from __future__ import annotations

import httpx
import openai
import pytest
import pytest_asyncio

from hilora.strategies import STRATEGY_NAMES
from tests.fakes.router_stack import task_texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CAPITAL, _SUM = task_texts("capitals")[0], task_texts("sums")[0]
_ANSWER = "Paris is the capital."
NEEDY = {
    "ramole": "hilora train gate --method ramole",
    "phatgoose": "hilora train gate --method phatgoose",
    "lorahub": "hilora train lorahub",
}
"""Strategies that need something trained, which this router does not have, and how it is made."""


@pytest_asyncio.fixture(loop_scope="module")
async def http(stack):
    async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as opened:
        yield opened


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


async def ask(client, text, *, model="auto", headers=None, **hilora):
    messages = text if isinstance(text, list) else [user(text)]
    answer = await client.chat.completions.create(
        model=model, messages=messages, extra_body={"hilora": hilora}, extra_headers=headers
    )
    return answer.model_extra["hilora"]


async def route(http, *, headers=None, **body):
    answer = await http.post("/v1/route", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(told):
    return [adapter["name"] for adapter in told["adapters"]]


class TestStrategies:
    async def test_the_model_names_one(self, client, stack):
        told = await ask(client, _CAPITAL, model="auto:seqr")
        assert told["strategy"] == "seqr"
        assert stack.worker.service.requests[-1].plan.gate.rule == 4
        assert (await client.models.retrieve("auto:seqr")).id == "auto:seqr"

    async def test_they_are_not_listed_as_models(self, client):
        listed = [model.id async for model in await client.models.list()]
        assert "auto" in listed
        assert not [model for model in listed if model.startswith("auto:")]

    async def test_an_unknown_one_is_not_found(self, client):
        with pytest.raises(openai.NotFoundError) as raised:
            await ask(client, _CAPITAL, model="auto:magic")
        assert raised.value.code == "unknown_strategy"
        assert "retriever-mixture" in raised.value.message

    @pytest.mark.parametrize("strategy", [name for name in STRATEGY_NAMES if name not in NEEDY])
    async def test_every_one_answers_by_its_name_in_the_model_or_in_the_options(self, client, strategy):
        wishes = {"own_adapter": "sums"} if strategy == "oracle" else {}
        by_model = await ask(client, _CAPITAL, model=f"auto:{strategy}", **wishes)
        by_option = await ask(client, _CAPITAL, strategy=strategy, **wishes)
        assert by_model["strategy"] == by_option["strategy"] == strategy
        assert by_model["plan_id"] == by_option["plan_id"]
        assert (await client.models.retrieve(f"auto:{strategy}")).id == f"auto:{strategy}"

    @pytest.mark.parametrize(("strategy", "remedy"), [*NEEDY.items(), ("oracle", "hilora.own_adapter")])
    async def test_one_that_lacks_something_says_how_to_get_it(self, client, strategy, remedy):
        with pytest.raises(openai.BadRequestError) as raised:
            await ask(client, _CAPITAL, model=f"auto:{strategy}")
        assert raised.value.code.startswith("strategy_needs_")
        assert remedy in raised.value.message

    async def test_what_is_done_first_is_told_and_sent(self, client, http, stack):
        told = await route(http, text=_CAPITAL, hilora={"strategy": "retriever-fusion"})
        assert told["plan"]["preparation"] == {"method": "fusion", "num_kept": 0}
        assert (await route(http, text=_CAPITAL))["plan"]["preparation"] is None
        await ask(client, _CAPITAL, strategy="logo")
        sent = stack.worker.service.requests[-1].plan.preparation
        assert (sent.method, sent.num_kept) == (3, 3)

    async def test_answers_without_an_automatic_choice_name_none(self, client):
        assert (await ask(client, _CAPITAL, model="sums"))["strategy"] is None


class TestComposition:
    async def test_adapters_run_with_their_scales(self, client, stack):
        wanted = [{"model": "sums", "scale": 0.5}, {"model": "poems", "scale": -1, "num_rocs": 2}]
        told = await ask(client, _CAPITAL, adapters=wanted)
        assert names(told) == ["sums", "poems"]
        budgets = stack.worker.service.requests[-1].plan.budgets
        assert [(budget.weight, budget.num_rocs) for budget in budgets] == [(0.5, budgets[0].lora_rank), (-1.0, 2)]

    async def test_one_whole_adapter_is_the_pinned_one(self, http):
        composed = await route(http, text="x", hilora={"adapters": [{"model": "sums"}]})
        pinned = await route(http, text="x", model="sums")
        assert composed["plan"] == pinned["plan"]

    async def test_what_cannot_be_is_a_client_s_error(self, client):
        for adapters, kind, code in (
            ([{"model": "nobody"}], openai.NotFoundError, "model_not_found"),
            ([{"model": "sums"}, {"model": "sums"}], openai.BadRequestError, "duplicate_adapter"),
            ([{"model": "sums", "num_rocs": 4096}], openai.BadRequestError, "invalid_num_rocs"),
        ):
            with pytest.raises(kind) as raised:
                await ask(client, "x", adapters=adapters)
            assert raised.value.code == code


class TestPlans:
    async def test_a_dry_run_s_plan_can_be_pinned(self, client, http, stack):
        told = await route(http, text=_CAPITAL, hilora={"strategy": "retriever-mixture"})
        answer = await ask(client, _SUM, plan_id=told["plan_id"])
        assert names(answer) == [budget["name"] for budget in told["plan"]["budgets"]]
        assert answer["plan_id"] == told["plan_id"]
        assert len(stack.worker.service.requests[-1].plan.budgets) == 3

    async def test_an_unknown_one_is_not_found(self, client):
        with pytest.raises(openai.NotFoundError) as raised:
            await ask(client, "x", plan_id="plan-0")
        assert raised.value.code == "plan_not_found"


class TestLowConfidence:
    async def test_a_refusal_is_422_and_names_who_came_nearest(self, http):
        body = {"model": "auto", "prompt": "zzz qqq", "hilora": {"low_confidence": "refuse"}}
        answer = await http.post("/v1/completions", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "low_confidence")
        assert {item["name"] for item in error["details"]["candidates"]} == {"capitals", "sums", "poems"}

    async def test_the_base_answers_if_that_is_wanted(self, client):
        told = await ask(client, "zzz qqq", low_confidence="base")
        assert (names(told), told["is_out_of_distribution"]) == ([], True)


class TestSessions:
    async def test_a_header_keeps_the_plan_while_the_topic_stays(self, client):
        headers = {"X-Session-Id": "header-session"}
        first = await ask(client, _CAPITAL, headers=headers)
        second = await ask(client, "hm", headers=headers)
        third = await ask(client, _SUM, headers=headers)
        assert [told["session"]["verdict"] for told in (first, second, third)] == ["new", "kept", "topic_moved"]
        assert [told["session"]["turn"] for told in (first, second, third)] == [1, 2, 3]
        assert (second["plan_id"], second["session"]["is_sticky"]) == (first["plan_id"], True)
        assert third["session"]["id"] == "header-session"
        assert "sums" in third["session"]["reason"]

    async def test_a_conversation_is_known_by_what_it_began_with(self, client):
        turns = [user(f"{_CAPITAL} prefix")]
        first = await ask(client, turns)
        turns += [assistant(_ANSWER), user("hm")]
        second = await ask(client, turns)
        assert second["session"] == first["session"] | {
            "turn": 2,
            "is_sticky": True,
            "verdict": "kept",
            "reason": second["session"]["reason"],
        }

    async def test_a_stream_tells_it_in_its_first_chunk_and_is_a_turn(self, client):
        hilora = {"session_id": "stream-session"}
        for verdict in ("new", "kept"):
            stream = await client.chat.completions.create(
                model="auto", messages=[user(_CAPITAL)], stream=True, extra_body={"hilora": hilora}
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[0].model_extra["hilora"]["session"]["verdict"] == verdict

    async def test_a_dry_run_tells_what_would_be_and_changes_nothing(self, client, http):
        headers = {"X-Session-Id": "dry-session"}
        await ask(client, _CAPITAL, headers=headers)
        for _ in range(2):
            told = await route(http, text=_SUM, headers=headers)
            assert (told["session"]["verdict"], told["session"]["turn"]) == ("topic_moved", 2)
        told = await route(http, messages=[user("hm")], hilora={"session_id": "dry-session"})
        assert told["session"]["verdict"] == "kept"
        assert [budget["name"] for budget in told["plan"]["budgets"]] == ["capitals"]

    async def test_headers_tell_it_in_short(self, http):
        body = {"model": "auto", "prompt": _CAPITAL, "hilora": {"session_id": "short"}}
        answer = await http.post("/v1/completions", json=body)
        assert answer.headers["X-HiLoRA-Session"] == "new"
        assert answer.headers["X-HiLoRA-Strategy"] == "hilora"
        assert answer.headers["X-HiLoRA-Plan"] == answer.json()["hilora"]["plan_id"]


class TestRoutedPart:
    async def test_a_dry_run_looks_where_it_is_told_to(self, http):
        messages = [user(_CAPITAL), assistant("x"), user("zzz")]
        whole = await route(http, messages=messages, hilora={"routed_part": "conversation"})
        last = await route(http, messages=messages)
        assert whole["candidates"] != last["candidates"]
        assert next(budget["name"] for budget in whole["plan"]["budgets"]) == "capitals"


class TestGating:
    async def test_tokens_tells_which_components_acted(self, client, stack):
        told = await ask(client, _CAPITAL, explain="tokens")
        assert stack.worker.service.requests[-1].explains_gating
        assert told["candidates"]
        num_tokens = told["num_gated_tokens"]
        (module,) = told["gating"]
        (adapter,) = module["adapters"]
        assert module["module_path"] == "model.layers.0.mlp.up_proj"
        assert (adapter["name"], adapter["adapter_id"]) == ("capitals", told["adapters"][0]["adapter_id"])
        fired = adapter["num_tokens_fired"]
        assert fired == [num_tokens - place for place in range(told["adapters"][0]["num_rocs"])]
        assert adapter["share"] == pytest.approx(sum(fired) / (num_tokens * len(fired)))

    async def test_nobody_pays_for_it_unasked(self, client, stack):
        told = await ask(client, _CAPITAL, explain=True)
        assert "gating" not in told
        assert not stack.worker.service.requests[-1].explains_gating

    async def test_a_stream_tells_it_at_its_end(self, client):
        stream = await client.chat.completions.create(
            model="auto", messages=[user(_CAPITAL)], stream=True, extra_body={"hilora": {"explain": "tokens"}}
        )
        chunks = [chunk async for chunk in stream]
        assert "gating" not in chunks[0].model_extra["hilora"]
        assert chunks[-1].model_extra["hilora"]["gating"][0]["adapters"]

    async def test_of_several_answers_each_tells_its_own(self, client):
        answer = await client.chat.completions.create(
            model="auto", messages=[user(_CAPITAL)], n=2, extra_body={"hilora": {"explain": "tokens"}}
        )
        assert all(choice.model_extra["hilora"]["gating"] for choice in answer.choices)
