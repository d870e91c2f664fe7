"""Ports that tests give to the processes they start: nobody else's."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.builders import ports

TESTS = Path(__file__).parents[2]


class TestFreePort:
    def test_none_is_named_twice(self):
        named = [ports.free_port() for _ in range(200)]

        assert len(set(named)) == len(named)

    @pytest.mark.parametrize("num_workers", [1, 2, 3, 16])
    def test_test_processes_share_none(self, num_workers):
        parts = [set(ports._part(worker_idx, num_workers)) for worker_idx in range(num_workers)]

        assert len(set.union(*parts)) == sum(map(len, parts))
        assert all(len(part) >= 1000 for part in parts)

    def test_connections_get_none_of_them(self):
        assert ports._LAST < 32_768, "where Linux's range for connections begins, unless a machine is set up otherwise"

    def test_one_that_is_taken_is_passed_over(self, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            number = taken.getsockname()[1]
            monkeypatch.setattr(ports, "_PORTS", iter([number, ports._FIRST]))
            monkeypatch.setattr(ports, "_LAST", ports._FIRST + 1)

            assert ports.free_port() != number

    def test_no_test_asks_the_kernel_for_one_that_a_process_is_to_take_later(self):
        asking = re.compile(r"\.bind\(\(.*, 0\)\)(?:\n.*){0,2}\n\s+(?:return|port =)\b.*getsockname")
        files = [file for file in TESTS.rglob("*.py") if file != Path(__file__)]

        assert [file.name for file in files if asking.search(file.read_text(encoding="utf-8"))] == []
