"""Sessions: requests that belong together and share a plan while their topic stays.

A session is known by the id that the client sends, or by what its conversation began with. What is remembered under an
id moves on with every turn; what is remembered of a conversation belongs to one point of it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from enum import StrEnum

from hilora.errors import InvalidInput
from services.router.answer import SessionStanding, SessionVerdict
from services.router.conversations import answered_keys, earlier_key
from services.router.plan_record import PlanRecord, SessionRecord
from services.router.ports import SessionStore
from services.router.request import ChatPrompt, Prompt
from services.router.routing_options import RoutingOptions

_MAX_ID_CHARS = 256


class SessionMatching(StrEnum):
    """By what requests are taken together."""

    PREFIX = "prefix"
    """By the session's id, or where there is none by what the conversation began with."""
    ID = "id"
    """By the session's id alone."""
    OFF = "off"
    """By nothing: every request is a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionVisit:
    """A request's session, before anything is decided."""

    session_id: str
    id_key: str | None
    """Under which it is remembered by its id; None for one that is known by its conversation."""
    options_digest: str
    before: SessionRecord | None
    """Where it stood; None for a new one."""

    def standing(self, verdict: SessionVerdict, reason: str, kept: PlanRecord) -> SessionStanding:
        """Where it stands with this turn's plan."""
        after = SessionRecord(
            session_id=self.session_id,
            turn=1 + (self.before.turn if self.before else 0),
            options_digest=self.options_digest,
            kept=kept,
        )
        return SessionStanding(verdict=verdict, reason=reason, after=after, id_key=self.id_key)


class Sessions:
    """Finds sessions, and remembers where they stand.

    Args:
        store: what is remembered.
        matching: by what requests are taken together.
    """

    def __init__(self, store: SessionStore, *, matching: SessionMatching) -> None:
        self._store = store
        self._matching = matching

    async def find(self, prompt: Prompt | str, options: RoutingOptions) -> SessionVisit | None:
        """The session of a request; None where it has none. Changes nothing.

        Raises:
            InvalidInput: `invalid_session_id`.
        """
        if self._matching is SessionMatching.OFF:
            return None
        digest = _options_digest(options)
        if options.session_id is not None:
            id_key = _id_key(options.session_id, tenant=options.tenant)
            before = await self._store.get(id_key)
            return SessionVisit(session_id=options.session_id, id_key=id_key, options_digest=digest, before=before)
        if self._matching is SessionMatching.ID or not isinstance(prompt, ChatPrompt):
            return None
        key = earlier_key(prompt, tenant=options.tenant)
        before = await self._store.get(key) if key is not None else None
        session_id = before.session_id if before else f"conversation-{uuid.uuid4().hex[:16]}"
        return SessionVisit(session_id=session_id, id_key=None, options_digest=digest, before=before)

    async def served(self, standing: SessionStanding | None) -> None:
        """A worker took the request: remember a session that has an id."""
        if standing is not None and standing.id_key is not None:
            await self._store.put(standing.id_key, standing.after)

    def follows_answers(self, standing: SessionStanding | None) -> bool:
        """Whether `answered` wants to hear what was answered."""
        return standing is not None and standing.id_key is None

    async def answered(
        self, standing: SessionStanding | None, prompt: Prompt, text: str, *, tenant: str | None
    ) -> None:
        """An answer is complete: remember a session that is known by its conversation."""
        if standing is not None and standing.id_key is None and isinstance(prompt, ChatPrompt):
            for key in answered_keys(prompt, text, tenant=tenant):
                await self._store.put(key, standing.after)


def _id_key(session_id: str, *, tenant: str | None) -> str:
    if not (1 <= len(session_id) <= _MAX_ID_CHARS and session_id.isprintable()):
        raise InvalidInput(
            f"The session id has {len(session_id)} characters, or some that cannot be printed.",
            code="invalid_session_id",
            remedy=f"Send 1 to {_MAX_ID_CHARS} printable characters.",
            place="session_id",
        )
    return f"id-{hashlib.sha256(json.dumps([tenant, session_id]).encode()).hexdigest()[:40]}"


def _options_digest(options: RoutingOptions) -> str:
    """Of everything that changes what would be chosen for a text."""
    wishes = [
        options.model,
        options.strategy,
        options.mode,
        options.gamma,
        sorted(options.exclude_adapters),
        options.max_candidates,
        options.min_candidates,
        options.roc_score,
        options.gate_scope,
        options.low_confidence,
        options.routed_part,
        sorted(options.tags),
        options.seed,
        options.tenant,
        options.min_trust_tier,
    ]
    if options.own_adapter is not None:
        wishes.append(options.own_adapter)
    return hashlib.sha256(json.dumps(wishes).encode()).hexdigest()[:32]
