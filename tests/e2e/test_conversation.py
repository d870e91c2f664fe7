"""A conversation keeps its plan, and with it its place in the worker's prefix cache, until its topic moves."""

from __future__ import annotations

import shutil
from typing import Any

import httpx
import pytest

from hilora.strategies import STRATEGY_NAMES
from tests.builders.patience import patient
from tests.builders.system import TESTBED, RunningSystem, lines_of, write_samples

TASKS = ("reverse-letters", "sort-digits", "next-capitals", "copy-letters")
NUM_TURNS = 10
MOVES_AT = 7
"""The turn that begins another topic."""


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    root = tmp_path_factory.mktemp("conversation")
    for task in TASKS:
        shutil.copytree(TESTBED / "adapters" / task, root / "pool" / task)
        write_samples(root / "pool" / task / "samples.jsonl", task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HILORA_WORKER_ENABLE_PREFIX_CACHE", "true")
        command = ("serve", "--base", str(TESTBED / "base"), "--adapters", str(root / "pool"))
        running = RunningSystem(data_dir=root / "data", command=command, pool=frozenset(TASKS)).start()
    yield running
    assert running.terminate() == 0, running.log[-4000:]


class Conversation:
    """Asks turn by turn and sends all of it back each time, as clients do."""

    def __init__(self, system: RunningSystem, **headers: str) -> None:
        self._url = f"{system.url}/v1/chat/completions"
        self._headers = headers
        self._messages: list[dict[str, str]] = []

    def ask(self, text: str) -> dict[str, Any]:
        self._messages.append({"role": "user", "content": text})
        body = {"model": "auto", "messages": self._messages, "max_tokens": 12, "temperature": 0}
        answer = httpx.post(self._url, json=body, headers=self._headers, timeout=patient(60))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        self._messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
        return told


def questions(first: str, then: str, *, skipped: int) -> list[str]:
    """Prompts of one task, and from `MOVES_AT` on of another."""
    asked = [line["prompt"] for line in lines_of(first)[skipped:][: MOVES_AT - 1]]
    return asked + [line["prompt"] for line in lines_of(then)[skipped:][: NUM_TURNS - MOVES_AT + 1]]


@pytest.mark.parametrize(
    # Each with its own prompts: the cache knows the others'.
    ("headers", "skipped"),
    [({}, 0), ({"X-Session-Id": "ten-turns"}, NUM_TURNS)],
    ids=["by conversation", "by id"],
)
def test_ten_turns_keep_their_plan_and_cache_and_plan_anew_where_the_topic_moves(system, headers, skipped):
    conversation = Conversation(system, **headers)
    told = [conversation.ask(text) for text in questions("reverse-letters", "sort-digits", skipped=skipped)]

    sessions = [answer["hilora"]["session"] for answer in told]
    before, after = told[: MOVES_AT - 1], told[MOVES_AT - 1 :]
    assert [session["turn"] for session in sessions] == list(range(1, NUM_TURNS + 1))
    assert len({session["id"] for session in sessions}) == 1
    verdicts = ["kept"] * NUM_TURNS
    verdicts[0], verdicts[MOVES_AT - 1] = "new", "topic_moved"
    assert [session["verdict"] for session in sessions] == verdicts
    for part, task in ((before, "reverse-letters"), (after, "sort-digits")):
        assert len({answer["hilora"]["plan_id"] for answer in part}) == 1
        assert [adapter["name"] for adapter in part[0]["hilora"]["adapters"]] == [task]
    assert "sort-digits" in sessions[MOVES_AT - 1]["reason"]

    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in told]
    prompts = [answer["usage"]["prompt_tokens"] for answer in told]
    # Another plan never shares a cache: the first turn of a topic reads everything.
    assert cached[0] == cached[MOVES_AT - 1] == 0
    kept = [place for place in range(NUM_TURNS) if verdicts[place] == "kept"]
    hit_rate = sum(cached[place] for place in kept) / sum(prompts[place] for place in kept)
    print(f"\nprefix-cache hit rate of turns with a kept plan: {hit_rate:.3f}")  # noqa: T201  (what is asked to be said)
    for place in kept:
        # Whatever was read in the last turn is there, but for what does not fill a block.
        assert cached[place] >= 0.8 * prompts[place - 1], (place, cached, prompts)
    assert hit_rate > 0.7


def test_a_text_that_says_little_keeps_the_plan_and_the_other_conversation_does_not_have_it(system):
    one, other = Conversation(system), Conversation(system)
    first = one.ask(lines_of("next-capitals")[0]["prompt"])
    kept = one.ask("and now this one : a b c")
    new = other.ask("and now this one : a b c")
    assert kept["hilora"]["session"]["verdict"] == "kept"
    assert kept["hilora"]["plan_id"] == first["hilora"]["plan_id"]
    assert new["hilora"]["session"]["verdict"] == "new"
    assert new["hilora"]["session"]["id"] != first["hilora"]["session"]["id"]


def test_tokens_explain_which_components_acted(system):
    prompt = lines_of("copy-letters")[0]["prompt"]
    told = system.complete(prompt, hilora={"explain": "tokens"})["hilora"]
    assert told["num_gated_tokens"] > 0
    assert told["gating"]
    for module in told["gating"]:
        (adapter,) = module["adapters"]
        assert adapter["name"] == "copy-letters"
        # A sure request runs all of its one adapter.
        assert set(adapter["num_tokens_fired"]) == {told["num_gated_tokens"]}
        assert adapter["share"] == 1.0


def test_two_whole_adapters_can_be_put_together(system):
    prompt = lines_of("copy-letters")[0]["prompt"]
    alone = system.complete(prompt, hilora={"adapters": [{"model": "copy-letters"}]})
    pinned = system.complete(prompt, model="copy-letters")
    mixed = system.complete(
        prompt, hilora={"adapters": [{"model": "copy-letters"}, {"model": "sort-digits", "scale": 0.0}]}
    )
    texts = {answer["choices"][0]["text"] for answer in (alone, pinned, mixed)}
    assert len(texts) == 1
    assert len(mixed["hilora"]["adapters"]) == 2


NEEDY = {"ramole": "hilora train gate", "phatgoose": "hilora train gate", "lorahub": "hilora train lorahub"}
"""Strategies that need something trained, which this system does not have, and how it is made."""


@pytest.mark.parametrize("strategy", [name for name in STRATEGY_NAMES if name != "hilora" and name not in NEEDY])
def test_every_strategy_is_answered(system, strategy):
    wishes = {"own_adapter": "copy-letters"} if strategy == "oracle" else {}
    answer = system.complete(lines_of("copy-letters")[0]["prompt"], model=f"auto:{strategy}", hilora=wishes)
    assert answer["hilora"]["strategy"] == strategy
    assert answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("strategy", [*NEEDY, "oracle"])
def test_a_strategy_that_lacks_something_says_how_to_get_it(system, strategy):
    body = {"model": f"auto:{strategy}", "prompt": "sort the letters : b a ="}
    answer = httpx.post(f"{system.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert NEEDY.get(strategy, "hilora.own_adapter") in answer.text
