"""Marks every test by the folder it stands in, so that nobody forgets a marker."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from tests.builders.patience import PATIENCE, patient

# Two cores are shared by every process of a test run: torch's own threads only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Without a GPU the Triton kernels run in their interpreter; it has to be chosen before they are imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A test never reaches for the hub: those that speak its protocol start a server and say so.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Developers search at random; continuous integration repeats one search, so that it fails for a reason in the change.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

_TIERS = ("unit", "contract", "integration", "e2e")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(root).parts[0]
        if tier in _TIERS:
            item.add_marker(tier)
        if PATIENCE != 1:
            marker = item.get_closest_marker("timeout")
            longest = marker.args[0] if marker else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(patient(longest)), append=False)
