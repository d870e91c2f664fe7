from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from hilora.errors import Conflict, InvalidInput, PermissionDenied, QueueFull, Unauthenticated, Unavailable
from hilora_cli.failure import reported_errors
from hilora_cli.generate import adapters_line
from hilora_cli.route import candidate_table, posterior_bar, verdict

ROUTE = {
    "is_out_of_distribution": True,
    "reason": "None fits.",
    "mode": "calibrated",
    "catalog_generation": 7,
    "timings": {"encode_seconds": 0.01, "decide_seconds": 0.002},
    "candidates": [
        {"name": "near", "log_likelihood_ratio": -3.2, "posterior": 0.75, "num_rocs": 6, "weight": 0.8},
        {"name": "far", "log_likelihood_ratio": -9.0, "posterior": 0.25, "num_rocs": 0, "weight": 0.0},
    ],
    "plan": {"num_rocs": 6, "budgets": [{"name": "near", "lora_rank": 8, "num_rocs": 6}]},
}


def shown(renderable):
    screen = io.StringIO()
    Console(width=100, file=screen).print(renderable)
    return screen.getvalue()


class TestRoute:
    def test_the_table_tells_chosen_from_merely_considered(self):
        near, far = (line for line in shown(candidate_table(ROUTE)).splitlines() if "near" in line or "far" in line)

        assert "6 of 8" in near
        assert "0.750" in near
        assert "-3.2" in near
        assert "of 8" not in far

    def test_out_of_distribution_is_said(self):
        text = shown(verdict(ROUTE))

        assert "Out of distribution" in text
        assert "None fits." in text
        assert "12 ms" in text

    @pytest.mark.parametrize(("share", "cells"), [(0, 0), (0.5, 8), (1, 16), (7, 16)])
    def test_a_bar_is_as_long_as_its_share(self, share, cells):
        assert posterior_bar(share) == "█" * cells + " " * (16 - cells)

    def test_a_bar_shows_less_than_a_character(self):
        assert posterior_bar(1 / 128).strip() == "▏"


class TestGenerate:
    def test_the_adapters_are_named_with_their_share(self):
        adapter = {"name": "near", "num_rocs": 6, "lora_rank": 8, "weight": 0.8}

        text = adapters_line({"adapters": [adapter], "is_out_of_distribution": False}).plain

        assert text == "answered by near (6 of 8 ROCs, weight 0.80)"

    def test_the_base_alone_is_said(self):
        assert "base model alone" in adapters_line({"adapters": [], "is_out_of_distribution": False}).plain


class TestFailures:
    def test_an_error_is_a_sentence_and_a_remedy_and_status_1(self, capsys):
        with pytest.raises(SystemExit) as ended, reported_errors():
            raise InvalidInput("It is wrong.", code="wrong", remedy="Mend it.")

        assert ended.value.code == 1
        assert capsys.readouterr().err == "It is wrong. [wrong]\nMend it.\n"

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (Unavailable("away"), 3),
            (QueueFull("full"), 3),
            (Unauthenticated("no key"), 4),
            (PermissionDenied("no scope"), 4),
            (Conflict("taken"), 1),
        ],
    )
    def test_a_script_learns_what_to_do_from_the_status(self, error, status, capsys):
        with pytest.raises(SystemExit) as ended, reported_errors():
            raise error

        assert ended.value.code == status
        assert capsys.readouterr().err

    def test_an_error_of_the_operating_system_is_no_traceback(self, capsys):
        with pytest.raises(SystemExit), reported_errors():
            raise FileNotFoundError(2, "No such file", "x")

        assert capsys.readouterr().err == "[Errno 2] No such file: 'x'\n"

    def test_other_errors_are_bugs_and_stay_visible(self):
        with pytest.raises(KeyError), reported_errors():
            raise KeyError("bug")


class TestStart:
    def test_help_loads_nothing_heavy(self):
        heavy = ["torch", "transformers", "numpy", "httpx", "pydantic", "grpc", "redis", "celery", "fastapi"]
        code = f"import sys, hilora_cli.main; print([name for name in {heavy} if name in sys.modules])"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout.strip() == "[]"
