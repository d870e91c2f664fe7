from __future__ import annotations

import importlib.util
import sys

from services.common.imports import leave_out_training_packages


def test_peft_is_not_found(monkeypatch):
    # Whatever this process has imported is there again afterwards.
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "peft")
    assert importlib.util.find_spec("peft") is not None
    leave_out_training_packages()
    assert importlib.util.find_spec("peft") is None


def test_where_it_is_imported_already_it_stays(monkeypatch):
    there = object()
    monkeypatch.setitem(sys.modules, "peft", there)
    leave_out_training_packages()
    assert sys.modules["peft"] is there
