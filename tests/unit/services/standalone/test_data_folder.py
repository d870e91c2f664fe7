from __future__ import annotations

import os
import stat

import pytest

from hilora.errors import Conflict
from services.standalone.data_folder import DataFolder

MAX_SOCKET_PATH_BYTES = 107


class TestOwnership:
    def test_a_second_owner_is_refused_and_told_who_the_first_is(self, tmp_path):
        first = DataFolder(tmp_path / "data")
        first.acquire()
        try:
            with pytest.raises(Conflict, match=str(os.getpid())) as refusal:
                DataFolder(tmp_path / "data").acquire()
        finally:
            first.release()

        assert refusal.value.code == "data_dir_in_use"
        assert "--data-dir" in refusal.value.remedy

    def test_a_released_folder_can_be_owned_again(self, tmp_path):
        folder = DataFolder(tmp_path / "data")
        folder.acquire()
        folder.release()

        other = DataFolder(tmp_path / "data")
        other.acquire()
        other.release()

    def test_releasing_twice_is_harmless(self, tmp_path):
        folder = DataFolder(tmp_path)
        folder.acquire()
        folder.release()
        folder.release()


class TestSocket:
    def test_it_lies_in_the_folder(self, tmp_path):
        folder = DataFolder(tmp_path)

        assert folder.socket.is_relative_to(tmp_path)

    def test_a_path_too_long_for_the_kernel_is_replaced_by_a_short_one(self, tmp_path):
        folder = DataFolder(tmp_path / ("x" * 120))

        assert len(os.fsencode(folder.socket)) <= MAX_SOCKET_PATH_BYTES
        assert folder.socket == DataFolder(tmp_path / ("x" * 120)).socket
        assert folder.socket != DataFolder(tmp_path / ("y" * 120)).socket

    def test_nobody_else_can_enter_its_folder(self, tmp_path):
        folder = DataFolder(tmp_path / ("x" * 120))
        folder.acquire()
        try:
            assert stat.S_IMODE(folder.socket.parent.stat().st_mode) == 0o700
        finally:
            folder.release()
            folder.socket.parent.rmdir()

    def test_a_link_in_its_place_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        folder = DataFolder(tmp_path / ("x" * 120))
        (tmp_path / "elsewhere").mkdir()
        folder.socket.parent.symlink_to(tmp_path / "elsewhere")

        with pytest.raises(Conflict) as refusal:
            folder.acquire()

        folder.release()
        assert refusal.value.code == "unsafe_socket_folder"
