from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hilora.errors import Conflict, InvalidInput
from hilora_cli.main import app
from services.standalone.data_folder import DataFolder
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def data_dir(tmp_path):
    """Of `hilora serve`, with one adapter."""
    stack = RegistryStack(DataFolder(tmp_path / "data").registry)
    stack.data.prepare()
    await stack.catalog.reconcile()
    await stack.publish("poems")
    return tmp_path / "data"


def run(*arguments, **variables):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={**variables}, catch_exceptions=True)


def test_there_and_back(data_dir, tmp_path):
    saved = run("backup", tmp_path / "b.tar", "--data-dir", data_dir)
    put = run("restore", tmp_path / "b.tar", "--data-dir", tmp_path / "copy")

    assert (saved.exit_code, put.exit_code) == (0, 0), (saved.output, put.output)
    assert saved.stdout.startswith("1 names, 1 versions, 0 waiting uploads")
    records = [DataFolder(folder).registry / "adapters" / "poems.json" for folder in (data_dir, tmp_path / "copy")]
    assert records[0].read_bytes() == records[1].read_bytes()


def test_a_registry_s_folder_is_known_by_its_variable(data_dir, tmp_path):
    folder = str(DataFolder(data_dir).registry)
    saved = run("backup", tmp_path / "b.tar", "--json", HILORA_REGISTRY_DATA_DIR=folder)
    assert json.loads(saved.stdout)["num_names"] == 1
    put = run("restore", tmp_path / "b.tar", HILORA_REGISTRY_DATA_DIR=str(tmp_path / "copy"))
    assert put.exit_code == 0
    assert (tmp_path / "copy" / "adapters" / "poems.json").is_file()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_some_folder_has_to_be_named(command, tmp_path):
    (tmp_path / "b.tar").touch()
    refused = run(command, tmp_path / "b.tar", HILORA_REGISTRY_DATA_DIR="")
    assert refused.exit_code == 2
    assert "--data-dir" in refused.output


def test_a_failed_backup_leaves_no_file(tmp_path):
    refused = run("backup", tmp_path / "b.tar", "--registry-dir", tmp_path / "nothing")
    assert isinstance(refused.exception, InvalidInput)
    assert refused.exception.code == "not_a_store"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_use_is_not_restored_into(data_dir, tmp_path):
    run("backup", tmp_path / "b.tar", "--data-dir", data_dir)
    owner = DataFolder(tmp_path / "copy")
    owner.acquire()
    try:
        refused = run("restore", tmp_path / "b.tar", "--data-dir", tmp_path / "copy")
    finally:
        owner.release()
    assert isinstance(refused.exception, Conflict)
    assert refused.exception.code == "data_dir_in_use"
