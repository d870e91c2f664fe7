"""The changes that a crash can interrupt: how each begins, and what a name looks like before and after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from tests.builders.crash_system import CrashSystem

OTHER_CONTENT = 1000
"""Added to a seed for the content of a second version."""

Step = Callable[[CrashSystem, str, int], httpx.Response]
"""Takes the system, a name, and the seed of its content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One kind of change."""

    act: Step
    was: Mapping[str, object]
    """Part of what `seen` says before it."""
    becomes: Mapping[str, object]
    """Part of what `seen` says after it."""
    prepare: tuple[Step, ...] = ()
    """What is done before it, each step brought to its end."""
    again: Step | None = None
    """How it is asked for once more; as the first time if None."""


def seen(system: CrashSystem, name: str) -> dict[str, object]:
    """A name as clients see it."""
    alias = system.aliases().get(_alias_of(name))
    history = system.history(name)
    if history is None:
        return {"state": "absent", "alias": alias}
    answer = system.http.get(f"/v1/adapters/{name}")
    entry: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return {
        "state": history["state"],
        "current": entry.get("version"),
        "versions": [version["state"] for version in history["versions"]],
        "num_samples": entry.get("num_samples"),
        "tier": history["trust_tier"],
        "alias": alias,
    }


def _upload(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    return system.upload(name, seed=seed)


def _upload_cut(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    return system.upload(name, seed=seed, cut=True)


def _replace(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    return system.upload(name, seed=seed + OTHER_CONTENT, replace="true")


def _add_samples(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.add_samples(name)


def _roll_back(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.post(f"/v1/adapters/{name}/rollback", json={"version": "1"})


def _retire(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.delete(f"/v1/adapters/{name}")


def _approve(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.post(f"/v1/adapters/{name}/approve", json={"reviewer": "tester"})


def _reject(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.post(f"/v1/adapters/{name}/reject", json={"reviewer": "tester"})


def _put_alias(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.put(f"/v1/aliases/{_alias_of(name)}", json={"target": name})


def _delete_alias(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.delete(f"/v1/aliases/{_alias_of(name)}")


def _open(system: CrashSystem, name: str, seed: int) -> httpx.Response:
    del seed
    return system.http.put(f"/v1/adapters/{name}/access", json={"trust_tier": "trusted", "visible_to": []})


def _alias_of(name: str) -> str:
    return f"alias-of-{name}"


_FIRST = {"state": "READY", "current": 1, "versions": ["READY"], "num_samples": 3}
_SECOND = {"state": "READY", "current": 2, "versions": ["READY", "READY"]}
_HELD = {"state": "QUARANTINED", "current": None, "versions": ["QUARANTINED"]}
_ABSENT = {"state": "absent"}

CHANGES: Mapping[str, Change] = {
    "upload": Change(act=_upload, was=_ABSENT, becomes=_FIRST),
    "upload in pieces": Change(act=_upload_cut, again=_upload, was=_ABSENT, becomes=_FIRST),
    "upload to quarantine": Change(act=_upload, was=_ABSENT, becomes=_HELD),
    "upload again": Change(act=_upload, prepare=(_upload,), was=_FIRST, becomes=_FIRST),
    "replacement": Change(act=_replace, prepare=(_upload,), was=_FIRST, becomes=_SECOND),
    "samples": Change(act=_add_samples, prepare=(_upload,), was=_FIRST, becomes={**_FIRST, "num_samples": 5}),
    "rollback": Change(
        act=_roll_back, prepare=(_upload, _replace), was=_SECOND, becomes={**_SECOND, "current": 1, "num_samples": 3}
    ),
    "retirement": Change(
        act=_retire,
        prepare=(_upload,),
        was=_FIRST,
        becomes={"state": "RETIRED", "current": None, "versions": ["READY"]},
    ),
    "approval": Change(act=_approve, prepare=(_upload,), was=_HELD, becomes=_FIRST),
    "rejection": Change(act=_reject, prepare=(_upload,), was=_HELD, becomes={**_HELD, "versions": ["REJECTED"]}),
    "alias": Change(act=_put_alias, prepare=(_upload,), was={"alias": None}, becomes={**_FIRST, "alias": "{name}"}),
    "end of an alias": Change(
        act=_delete_alias, prepare=(_upload, _put_alias), was={"alias": "{name}"}, becomes={**_FIRST, "alias": None}
    ),
    "access": Change(
        act=_open, prepare=(_upload,), was={**_FIRST, "tier": "community"}, becomes={**_FIRST, "tier": "trusted"}
    ),
}
"""By what a row of the matrix calls it; `{name}` stands for the adapter's name."""
