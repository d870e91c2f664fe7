"""The shipped sentence encoder, from its package to a plan."""

from __future__ import annotations

import httpx

from services.common.sequence_encoder import SentenceTransformerEncoder
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import eventually

_TEXTS = {
    "translation": [
        "Translate this sentence into French: good morning.",
        "Translate into German: the house is red.",
        "How do you say 'thank you' in Spanish?",
        "Give the Italian translation of: see you tomorrow.",
    ],
    "arithmetic": [
        "What is 12 plus 30?",
        "Compute 7 times 8.",
        "Subtract 15 from 40.",
        "How much is 81 divided by 9?",
    ],
}


async def test_a_new_text_finds_the_adapter_of_its_task():
    encoders = []

    def load():
        encoders.append(SentenceTransformerEncoder())
        return encoders[0]

    registry = FakeRegistry()
    await registry.start()
    router = build_router(
        RouterSettings(rpc_port=0, registry_address=registry.address), load_encoder=load, opens_http=False
    )
    await router.start()
    try:
        for name, texts in _TEXTS.items():
            registry.service.upsert(catalog_entry(name, texts, encoder=encoders[0]))
        await eventually(lambda: router.readiness().can_route)
        await router._catalog.wait_beyond(1, timeout_seconds=5)
        transport = httpx.ASGITransport(app=router.rest_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as plain:
            for text, expected in (
                ("Please translate 'good night' into Portuguese.", "translation"),
                ("What is 19 plus 4?", "arithmetic"),
            ):
                answer = (await plain.post("/v1/route", json={"text": text})).json()
                assert answer["candidates"][0]["name"] == expected
                assert answer["encoder_id"].startswith("all-MiniLM-L6-v2:")
    finally:
        await router.stop(grace_seconds=0)
        await registry.stop()
