"""Doubted adapters of the catalogue; trusted ones never are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hilora.access import AdapterAccess, TrustTier
from hilora.sample_review import SampleReview
from hilora.sequence_routing import AdapterProfile
from services.router.catalog import CatalogAdapter
from services.router.infra import sample_doubts
from services.router.infra.catalog_entry import ReplicatedEntry
from services.router.infra.sample_doubts import doubtful


def entry(name, *, task, at, tier=TrustTier.COMMUNITY):
    rows = np.random.default_rng(task).normal(size=(20, 64)) * 0.1
    rows[:, task] += 1.0
    adapter_id = f"{name}@1"
    return ReplicatedEntry(
        adapter=CatalogAdapter(
            adapter_id=adapter_id,
            adapter_name=name,
            revision="1",
            lora_rank=4,
            created_at=at,
            access=AdapterAccess(trust_tier=tier),
        ),
        profile=AdapterProfile(
            adapter_id=adapter_id,
            adapter_name=name,
            lora_rank=4,
            samples_ME=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        ),
        encoder_id="encoder",
    )


@pytest.fixture
def entries():
    return [entry("first", task=0, at=1.0), entry("second", task=1, at=2.0), entry("thief", task=0, at=3.0)]


def test_a_copy_is_doubted_and_told_what_to_do(entries):
    doubts = doubtful(entries, SampleReview())

    assert set(doubts) == {"thief"}
    assert "first" in doubts["thief"]
    assert "trusted" in doubts["thief"]


def test_a_trusted_adapter_is_never_doubted(entries):
    trusted = entry("thief", task=0, at=3.0, tier=TrustTier.TRUSTED)

    assert doubtful([*entries[:2], trusted], SampleReview()) == {}


def test_adapters_without_samples_have_nothing_to_doubt(entries):
    assert doubtful([*entries[:2], replace(entries[2], profile=None)], SampleReview()) == {}


def test_large_pools_are_not_compared(entries, monkeypatch):
    monkeypatch.setattr(sample_doubts, "REVIEWED_UP_TO", 2)

    assert doubtful(entries, SampleReview()) == {}
