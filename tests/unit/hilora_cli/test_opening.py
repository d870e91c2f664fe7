"""When a served system is announced."""

from __future__ import annotations

import asyncio

import pytest

from hilora.errors import InvalidInput
from hilora_cli import opening
from hilora_cli.adapter_upload import AdapterUpload
from hilora_cli.opening import Opening

UPLOADS = [AdapterUpload(source="pool/one", name="one"), AdapterUpload(source="pool/two", name="two")]


class Server:
    """Knows its adapters, and then has fitted its choice to them, some looks later."""

    address = "127.0.0.1:1"
    rpc_address = "127.0.0.1:2"

    def __init__(self, *, known_after: int, fitted_after: float) -> None:
        self._known_after, self._fitted_after = known_after, fitted_after
        self.looks = 0

    @property
    def adapter_names(self) -> frozenset[str]:
        self.looks += 1
        return frozenset({"one", "two"} if self.looks > self._known_after else {"one"})

    @property
    def has_fitted(self) -> bool:
        return self.looks > self._fitted_after


@pytest.fixture
def register(monkeypatch):
    """Registers adapters at once; the refused ones fail."""
    refused: set[str] = set()

    async def missing_from(client, uploads):
        return list(uploads)

    async def seed(client, uploads, *, on_seeded):
        for upload in uploads:
            on_seeded(upload.name, InvalidInput("It is bad.", code="bad") if upload.name in refused else None)

    monkeypatch.setattr(opening, "missing_from", missing_from)
    monkeypatch.setattr(opening, "seed", seed)
    monkeypatch.setattr(opening, "_CATALOG_POLL_SECONDS", 0.001)
    return refused


def looks_until_announced(server: Server, uploads: list[AdapterUpload]) -> int:
    seen: list[int] = []
    component = Opening(server, uploads=uploads, admin_key=None, announce=lambda url, rpc: seen.append(server.looks))
    asyncio.run(component.start())
    assert len(seen) == 1
    return seen[0]


class TestAnnouncement:
    def test_it_waits_until_every_adapter_is_known(self, register):
        assert looks_until_announced(Server(known_after=5, fitted_after=0), UPLOADS) == 6

    def test_it_waits_until_the_choice_is_fitted_to_them(self, register):
        assert looks_until_announced(Server(known_after=2, fitted_after=9), UPLOADS) == 10

    def test_an_adapter_that_was_refused_is_not_waited_for(self, register, capsys):
        register.add("two")
        assert looks_until_announced(Server(known_after=10_000_000, fitted_after=0), UPLOADS) == 1
        assert "two was left out: It is bad." in capsys.readouterr().err

    def test_a_fit_that_takes_too_long_is_not_waited_for(self, register, monkeypatch):
        monkeypatch.setattr(opening, "_FIT_SECONDS", 0.05)
        assert looks_until_announced(Server(known_after=0, fitted_after=float("inf")), UPLOADS) > 1

    def test_without_uploads_nothing_is_waited_for(self, register):
        assert looks_until_announced(Server(known_after=9, fitted_after=9), []) == 0
