"""The audit log on the disk."""

from __future__ import annotations

import multiprocessing

import pytest

from hilora.errors import InvalidInput
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.infra.audit_log import DiskAuditLog


def an_event(number, *, adapter="a"):
    return AuditEvent(
        principal="ci",
        action="retire_adapter",
        outcome=AuditOutcome.DONE,
        door="rest",
        adapter=adapter,
        request_id=f"r{number}",
        at=float(number),
    )


def a_log(folder, *, max_file_bytes=1 << 20, max_files=100):
    return DiskAuditLog(folder, max_file_bytes=max_file_bytes, max_files=max_files)


def all_numbers(log, *, limit):
    numbers, cursor = [], None
    while True:
        page = log.page(before=cursor, limit=limit)
        numbers += [int(event.at) for event in page.events]
        cursor = page.next_cursor
        if cursor is None:
            return numbers


def write_many(folder, start):
    log = a_log(folder, max_file_bytes=4096)
    for number in range(start, start + 50):
        log.append(an_event(number))


class TestPages:
    @pytest.mark.parametrize("limit", [1, 7, 1000])
    def test_every_event_once_newest_first_over_all_files(self, tmp_path, limit):
        log = a_log(tmp_path, max_file_bytes=700)
        for number in range(40):
            log.append(an_event(number))

        assert len(list(tmp_path.glob("*.jsonl"))) > 3
        assert all_numbers(log, limit=limit) == list(reversed(range(40)))

    def test_lines_longer_than_a_block_are_whole(self, tmp_path):
        log = a_log(tmp_path, max_file_bytes=1 << 30)
        for number in range(6):
            log.append(an_event(number, adapter="é" * 40_000))

        page = log.page(before=None, limit=4)

        assert [int(event.at) for event in page.events] == [5, 4, 3, 2]
        assert all(event.adapter == "é" * 40_000 for event in page.events)

    def test_pages_stay_where_they_are_while_events_come(self, tmp_path):
        log = a_log(tmp_path)
        for number in range(4):
            log.append(an_event(number))
        first = log.page(before=None, limit=2)
        log.append(an_event(4))

        assert [int(event.at) for event in log.page(before=first.next_cursor, limit=2).events] == [1, 0]

    def test_an_empty_log(self, tmp_path):
        assert a_log(tmp_path).page(before=None, limit=5).events == ()

    @pytest.mark.parametrize("cursor", ["", "1", "-1-2", "a-b", "1-2-3", "../x"])
    def test_what_is_no_cursor(self, tmp_path, cursor):
        with pytest.raises(InvalidInput):
            a_log(tmp_path).page(before=cursor, limit=5)

    def test_a_cursor_from_a_file_that_left(self, tmp_path):
        log = a_log(tmp_path)
        log.append(an_event(1))

        assert log.page(before="0-10", limit=5).events == ()


class TestKeeping:
    def test_the_oldest_files_leave(self, tmp_path):
        log = a_log(tmp_path, max_file_bytes=400, max_files=3)
        for number in range(30):
            log.append(an_event(number))

        numbers = all_numbers(log, limit=10)

        assert len(list(tmp_path.glob("*.jsonl"))) == 3
        assert numbers == list(range(29, 29 - len(numbers), -1))

    def test_a_torn_line_costs_nothing_but_itself(self, tmp_path):
        log = a_log(tmp_path)
        log.append(an_event(1))
        (path,) = tmp_path.glob("*.jsonl")
        with path.open("ab") as stream:
            stream.write(b'{"principal": "ci", "act')

        a_log(tmp_path).append(an_event(2))

        assert all_numbers(a_log(tmp_path), limit=5) == [2, 1]

    def test_processes_write_whole_lines_side_by_side(self, tmp_path):
        context = multiprocessing.get_context("fork")
        writers = [context.Process(target=write_many, args=(tmp_path, start)) for start in (0, 100, 200)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

        numbers = all_numbers(a_log(tmp_path), limit=17)

        assert sorted(numbers) == [start + offset for start in (0, 100, 200) for offset in range(50)]
