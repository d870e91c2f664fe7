"""A bench of three families of the shipped pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilora_lab.accuracy.accuracy_bench import AccuracyBench
from hilora_lab.testbed.folder import Testbed, read_testbed
from tests.builders.plain_encoder import FAMILIES, PlainEncoder

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"


@pytest.fixture(scope="package")
def small_testbed():
    lines = tuple(line for line in read_testbed(FOLDER).lines if line.family in FAMILIES)
    return Testbed(folder=FOLDER, lines=lines)


@pytest.fixture(scope="package")
def bench(small_testbed):
    opened = AccuracyBench(small_testbed, PlainEncoder(small_testbed.lines), limit_per_task=3)
    yield opened
    opened.close()
