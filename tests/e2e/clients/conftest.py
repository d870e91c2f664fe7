"""One system for the clients of others, with a base whose answers grammars make."""

from __future__ import annotations

import pytest

from tests.builders.speller import running_speller


@pytest.fixture(scope="session")
def speller(tmp_path_factory):
    with running_speller(tmp_path_factory.mktemp("clients")) as running:
        yield running
