"""The disk tier: files by checksum, for several processes, whatever happens to the folder."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.worker.infra.component_files import ComponentFiles


def _content(number: int, num_bytes: int = 100) -> tuple[str, bytes]:
    content = bytes([number]) * num_bytes
    return hashlib.sha256(content).hexdigest(), content


class TestComponentFiles:
    def test_another_process_finds_what_was_written(self, tmp_path: Path) -> None:
        sha256, content = _content(1)
        assert ComponentFiles(tmp_path / "new", capacity_bytes=1000).read(sha256) is None
        ComponentFiles(tmp_path / "new", capacity_bytes=1000).write(sha256, content)
        files = ComponentFiles(tmp_path / "new", capacity_bytes=1000)
        assert files.read(sha256) == content
        files.check_integrity()
        assert (files.stats().num_hits, files.stats().num_misses, files.used_bytes()) == (1, 0, 100)

    @pytest.mark.parametrize("damage", [b"", b"x" * 100, b"\x01" * 99])
    def test_a_damaged_file_is_no_file(self, tmp_path: Path, damage) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=1000)
        sha256, content = _content(1)
        files.write(sha256, content)
        (tmp_path / f"{sha256}.safetensors").write_bytes(damage)
        assert files.read(sha256) is None
        assert (files.stats().num_damaged, list(tmp_path.iterdir())) == (1, [])
        files.write(sha256, content)
        assert files.read(sha256) == content

    def test_the_least_recently_used_file_leaves(self, tmp_path: Path) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=250)
        for number in (1, 2):
            files.write(*_content(number))
            path = tmp_path / f"{_content(number)[0]}.safetensors"
            os.utime(path, (number, number))
        assert files.read(_content(1)[0]) is not None
        files.write(*_content(3))
        assert [files.read(_content(number)[0]) is not None for number in (1, 2, 3)] == [True, False, True]
        assert files.stats().num_evictions == 1
        files.write(*_content(4, num_bytes=300))
        assert files.used_bytes() == 200

    def test_what_it_holds_is_told_as_it_changes(self, tmp_path: Path) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=250)
        told = []
        for act in (
            lambda: files.write(*_content(1)),
            lambda: files.write(*_content(2)),
            lambda: files.write(*_content(3)),
            lambda: files.forget(_content(3)[0]),
        ):
            act()
            stats = files.stats()
            told.append((stats.num_adapters, stats.used_bytes, stats.num_evictions))
        assert told == [(1, 100, 0), (2, 200, 0), (2, 200, 1), (1, 100, 1)]
        assert files.stats().capacity_bytes == 250

    def test_a_folder_that_is_not_there_holds_nothing(self, tmp_path: Path) -> None:
        stats = ComponentFiles(tmp_path / "none", capacity_bytes=250).stats()
        assert (stats.num_adapters, stats.used_bytes) == (0, 0)

    def test_files_that_cannot_be_removed_count_and_what_has_no_room_is_not_kept(self, tmp_path, monkeypatch) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=250)
        for number in (1, 2):
            files.write(*_content(number))
            os.utime(tmp_path / f"{_content(number)[0]}.safetensors", (number, number))
        unlink = Path.unlink

        def guarded(path: Path, **options: bool) -> None:
            if path.stem == _content(1)[0]:
                raise PermissionError("another user's")
            unlink(path, **options)

        monkeypatch.setattr(Path, "unlink", guarded)
        files.write(*_content(3))
        assert [files.read(_content(number)[0]) is not None for number in (1, 2, 3)] == [True, False, True]
        files.write(*_content(4, num_bytes=200))
        assert (files.used_bytes(), files.stats().num_evictions) == (100, 2)

    def test_forgetting_says_what_it_frees(self, tmp_path: Path) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=1000)
        files.write(*_content(1))
        assert (files.forget(_content(1)[0]), files.forget(_content(1)[0])) == (100, 0)

    def test_a_folder_that_cannot_be_used_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way", encoding="utf-8")
        files = ComponentFiles(tmp_path / "file" / "folder", capacity_bytes=1000)
        files.write(*_content(1))
        assert files.read(_content(1)[0]) is None
        assert files.used_bytes() == 0

    def test_unfinished_files_of_the_past_are_cleared_away(self, tmp_path: Path) -> None:
        for name, age in (("components-old.part", 7200), ("components-new.part", 0), ("film.part", 7200)):
            (tmp_path / name).write_bytes(b"half")
            os.utime(tmp_path / name, (time.time() - age, time.time() - age))
        ComponentFiles(tmp_path, capacity_bytes=1000).write(*_content(1))
        # Whatever else lies in the folder is left alone.
        assert sorted(path.name for path in tmp_path.glob("*.part")) == ["components-new.part", "film.part"]

    @pytest.mark.parametrize("name", ["../model", "model", "", "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
    def test_what_is_no_checksum_touches_nothing(self, tmp_path: Path, name) -> None:
        (tmp_path / "tier").mkdir()
        bystanders = [tmp_path / "model.safetensors", tmp_path / "tier" / "model.safetensors"]
        for path in bystanders:
            path.write_bytes(b"precious")
        files = ComponentFiles(tmp_path / "tier", capacity_bytes=100)
        assert (files.read(name), files.forget(name)) == (None, 0)
        files.write(name, b"x")
        files.write(*_content(1))
        assert all(path.read_bytes() == b"precious" for path in bystanders)
        assert (files.used_bytes(), files.stats().num_misses) == (100, 1)
        files.check_integrity()

    def test_a_file_of_another_user_is_a_hit(self, tmp_path: Path, monkeypatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        files = ComponentFiles(tmp_path, capacity_bytes=1000)
        files.write(*_content(1))
        monkeypatch.setattr(os, "utime", refuse)
        assert files.read(_content(1)[0]) == _content(1)[1]
        assert (files.stats().num_hits, files.stats().num_misses) == (1, 0)

    def test_threads_that_write_at_once_stay_within_the_capacity(self, tmp_path: Path, monkeypatch) -> None:
        files = ComponentFiles(tmp_path, capacity_bytes=150)
        fsync = os.fsync

        def slow_fsync(descriptor: int) -> None:
            time.sleep(0.02)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", slow_fsync)
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(lambda number: files.write(*_content(number)), range(4)))
        assert files.used_bytes() == 100

    def test_room_that_another_process_took_meanwhile_is_made_again(self, tmp_path: Path, monkeypatch) -> None:
        files, other = (ComponentFiles(tmp_path, capacity_bytes=150) for _ in range(2))
        replace = Path.replace

        def late_replace(part: Path, target: Path) -> None:
            monkeypatch.setattr(Path, "replace", replace)
            other.write(*_content(2))
            replace(part, target)

        monkeypatch.setattr(Path, "replace", late_replace)
        files.write(*_content(1))
        assert files.used_bytes() == 100

    def test_many_writers_and_readers_of_one_folder(self, tmp_path: Path) -> None:
        workers = [ComponentFiles(tmp_path, capacity_bytes=450) for _ in range(4)]

        def work(turn: int) -> bool:
            files, (sha256, content) = workers[turn % 4], _content(turn % 7)
            found = files.read(sha256)
            if found is None:
                files.write(sha256, content)
            return found is None or found == content

        with ThreadPoolExecutor(4) as executor:
            assert all(executor.map(work, range(200)))
        assert all(files.stats().num_damaged == 0 for files in workers)
        assert not list(tmp_path.glob("*.part"))
        workers[0].write(*_content(99))
        workers[0].check_integrity()
