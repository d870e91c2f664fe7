"""Three families of the shipped pool, and an encoder that sees family and domain plainly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilora_lab.accuracy.accuracy_bench import AccuracyBench
from hilora_lab.testbed.folder import Testbed, read_testbed

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"
FAMILIES = ("rotate", "reverse", "ends")
DOMAINS = ("letters", "digits", "capitals")


class PlainEncoder:
    """Points near one corner per family, nudged by domain, with a little repeatable noise."""

    def __init__(self, lines):
        self._task_of = {line.prompt: (line.family, line.domain) for line in lines}

    def encode(self, texts):
        rows = []
        for text in texts:
            family, domain = self._task_of[text]
            row = np.random.default_rng(sum(text.encode())).normal(0.0, 0.02, size=64)
            row[FAMILIES.index(family)] += 1.0
            row[8 + DOMAINS.index(domain)] += 0.3
            rows.append(row / np.linalg.norm(row))
        return np.asarray(rows, dtype=np.float32)


@pytest.fixture(scope="package")
def small_testbed():
    lines = tuple(line for line in read_testbed(FOLDER).lines if line.family in FAMILIES)
    return Testbed(folder=FOLDER, lines=lines)


@pytest.fixture(scope="package")
def bench(small_testbed):
    opened = AccuracyBench(small_testbed, PlainEncoder(small_testbed.lines), limit_per_task=3)
    yield opened
    opened.close()
