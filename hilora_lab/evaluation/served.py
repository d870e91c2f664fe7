"""Exact match of a running system, through its REST API alone: the client side of `hilora eval`.

Five settings, five questions: `id`: does routing find a task's own adapter? `ood`: what is left when that adapter may
not be used? `unseen`: what happens to tasks no adapter was made for? `base` and `oracle` (the own adapter named by the
caller) are the floor and the ceiling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from hilora.errors import GenerationFailed, HiloraError, InvalidInput, Unavailable
from hilora_lab.testbed.folder import Split, TaskLine, Testbed, read_testbed

Setting = Literal["id", "ood", "unseen", "base", "oracle"]
SETTINGS: tuple[Setting, ...] = ("id", "ood", "unseen", "base", "oracle")

AUTO_MODEL = "auto"
_SPARE_TOKENS = 4
"""Allowed beyond the longest answer's words, so that an answer that does not stop is seen as wrong."""

OnProgress = Callable[[Setting, int, int], None]
"""Called with (setting, prompts done, prompts in all) after every answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One request and the answer it must get."""

    setting: Setting
    body: Mapping[str, Any]
    answer: str


async def run_served_evaluation(
    *,
    url: str,
    testbed: Path | Testbed,
    split: Split = "test",
    concurrency: int = 8,
    limit_per_task: int | None = None,
    settings: Sequence[Setting] = SETTINGS,
    api_key: str | None = None,
    timeout_seconds: float = 120.0,
    on_progress: OnProgress | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, dict[str, float | int]]:
    """Ask a running system every prompt of a testbed's split and compare the answers exactly.

    Args:
        url: where the router listens, e.g. `http://127.0.0.1:8000`.
        testbed: a testbed folder, or one already read.
        split: which lines to ask.
        concurrency: requests in flight at once.
        limit_per_task: at most that many prompts of each task.
        settings: which of the five settings to run, in that order.
        api_key: sent as a bearer token if given.
        timeout_seconds: for one request.
        on_progress: see `OnProgress`.
        transport: how requests travel; for tests.

    Returns:
        `{setting: {"exact_match": share, "n": prompts}}`; a setting without prompts has `n` 0 and exact match 0.

    Raises:
        Unavailable: `server_unreachable`, if nothing answers at `url`.
        InvalidInput: `request_refused` for a 4xx answer, `invalid_testbed`, `no_base_model`.
        GenerationFailed: `request_failed` for a 5xx answer or one that is no completion.
    """
    read = testbed if isinstance(testbed, Testbed) else read_testbed(testbed)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(
        base_url=url.rstrip("/"), headers=headers, timeout=timeout_seconds, transport=transport
    ) as client:
        base_model = await find_base_model(client)
        questions: dict[Setting, list[Question]] = {
            setting: list(questions_of(read, setting, split, base_model=base_model, limit_per_task=limit_per_task))
            for setting in settings
        }
        scores: dict[str, dict[str, float | int]] = {}
        for setting, asked in questions.items():
            scores[setting] = await _ask_all(client, setting, asked, concurrency, on_progress)
        return scores


async def find_base_model(client: httpx.AsyncClient) -> str:
    """The base's name: the listed model that is not `auto` and has no parent.

    Raises:
        InvalidInput: `no_base_model`, unless there is exactly one.
    """
    listing = await _call(client, "GET", "/v1/models", None)
    entries = cast("list[dict[str, Any]]", listing.get("data", []))
    names = [str(entry["id"]) for entry in entries if entry["id"] != AUTO_MODEL and not entry.get("parent")]
    if len(names) != 1:
        raise InvalidInput(
            f"GET /v1/models lists {len(names)} models without a parent ({', '.join(names) or 'none'}); one is needed.",
            code="no_base_model",
            remedy="Check that the address is a HiLoRA router's.",
            place="/v1/models",
        )
    return names[0]


def questions_of(
    testbed: Testbed, setting: Setting, split: Split, *, base_model: str, limit_per_task: int | None = None
) -> Iterator[Question]:
    """The requests of one setting."""
    tasks = testbed.unseen_task_names if setting == "unseen" else testbed.adapter_names
    max_tokens = max(len(line.answer.split()) for line in testbed.lines) + _SPARE_TOKENS
    for task in tasks:
        for line in testbed.lines_of(task, split)[:limit_per_task]:
            yield Question(setting=setting, body=_body(setting, line, base_model, max_tokens), answer=line.answer)


def _body(setting: Setting, line: TaskLine, base_model: str, max_tokens: int) -> dict[str, Any]:
    model = {"base": base_model, "oracle": line.task}.get(setting, AUTO_MODEL)
    body: dict[str, Any] = {"model": model, "prompt": line.prompt, "max_tokens": max_tokens, "temperature": 0}
    if setting == "ood":
        body["hilora"] = {"exclude_adapters": [line.task]}
    return body


async def _ask_all(
    client: httpx.AsyncClient,
    setting: Setting,
    questions: Sequence[Question],
    concurrency: int,
    on_progress: OnProgress | None,
) -> dict[str, float | int]:
    waiting = iter(questions)
    num_done = num_right = 0

    async def ask_in_turn() -> None:
        nonlocal num_done, num_right
        for question in waiting:
            # Awaited before the addition: `num_right +=` would read the count first and lose what others add.
            is_right = await _answer(client, question) == question.answer
            num_right += is_right
            num_done += 1
            if on_progress is not None:
                on_progress(setting, num_done, len(questions))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(questions))):
                group.create_task(ask_in_turn())
    except* HiloraError as failures:
        raise failures.exceptions[0] from None
    return {"exact_match": num_right / num_done if num_done else 0.0, "n": num_done}


async def _answer(client: httpx.AsyncClient, question: Question) -> str:
    reply = await _call(client, "POST", "/v1/completions", question.body)
    try:
        return str(reply["choices"][0]["text"]).strip()
    except (KeyError, IndexError, TypeError) as error:
        raise GenerationFailed(
            f"The reply to {question.body['prompt']!r} is no completion: {reply!r}.",
            code="request_failed",
            place="/v1/completions",
        ) from error


async def _call(client: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """Send one request; a refused or failed one raises with the server's own words."""
    try:
        response = await client.request(method, path, json=body)
    except httpx.TransportError as error:
        raise Unavailable(
            f"{method} {client.base_url.join(path)} got no answer: {error or type(error).__name__}.",
            code="server_unreachable",
            remedy="Check the address, and that the system is up (`GET /readyz`).",
            place=path,
        ) from error
    if response.is_success:
        try:
            return cast("dict[str, Any]", response.json())
        except ValueError as error:
            raise GenerationFailed(
                f"{method} {path} did not answer with JSON: {response.text[:200]!r}.", code="request_failed", place=path
            ) from error
    message = f"{method} {path} answered {response.status_code}: {_server_message(response)}"
    about = f" for model {body['model']!r}, prompt {body['prompt']!r}" if body else ""
    if response.is_client_error:
        raise InvalidInput(message + about, code="request_refused", place=path)
    raise GenerationFailed(message + about, code="request_failed", place=path)


def _server_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase
