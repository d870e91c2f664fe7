from __future__ import annotations

import json
import stat

import pytest
from typer.testing import CliRunner

from hilora_cli import keys
from services.common.inference_keys import CallerRing, InferenceKeyFile


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def run(file, *arguments):
    return CliRunner().invoke(keys.app, [*arguments, "--file", str(file)], env={"COLUMNS": "160"})


class TestKeys:
    def test_a_key_is_printed_once_and_opens_the_door(self, file):
        made = run(file, "create", "ann", "--tenant", "acme", "--requests-per-minute", "9", "--days", "1")
        secret = made.stdout.strip()

        caller = CallerRing([InferenceKeyFile(file)]).authenticate(f"Bearer {secret}")
        assert (caller.name, caller.tenant, caller.limits.requests_per_minute) == ("ann", "acme", 9)
        assert secret not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_revoked_one_is_gone_and_the_others_stay(self, file):
        for name in ("ann", "bob"):
            run(file, "create", name)
        assert run(file, "revoke", "ann").stdout == "ann revoked\n"
        assert [key["name"] for key in json.loads(run(file, "list", "--json").stdout)] == ["bob"]
        assert "bob" in run(file, "list").stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            ("create", "ann"),
            ("create", "a b"),
            ("create", "bob", "--scope", "admin"),
            ("create", "bob", "--tenant", "a b"),
            ("revoke", "bob"),
        ],
    )
    def test_misuse_changes_nothing(self, file, arguments):
        run(file, "create", "ann")
        before = file.read_bytes()
        assert run(file, *arguments).exit_code == 2
        assert file.read_bytes() == before
