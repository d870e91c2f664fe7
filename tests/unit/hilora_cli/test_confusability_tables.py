from __future__ import annotations

import io

import pytest
from rich.console import Console

from hilora_cli.confusability import confusability_table, rival_table

RIVAL = {
    "name": "sums-again",
    "adapter_id": "sums-again@0123",
    "distance": 0.12,
    "error_bound": 0.443,
    "same_task_ratio": 1.02,
    "is_near_duplicate": True,
    "overlap": {"cosine": 0.98, "norm_ratio": 1.0, "modules": {}},
}
ROW = {
    "name": "sums",
    "adapter_id": "sums@0123",
    "num_samples": 20,
    "routed_right_at_least": 0.113,
    "rivals": [RIVAL, {**RIVAL, "name": "poems", "is_near_duplicate": False, "overlap": None, "distance": 9.5}],
    "advice": "merge",
    "explanation": "Keep one.",
}


def shown(table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(table)
    return stream.getvalue()


class TestAuditTable:
    @pytest.mark.parametrize("num_passed_over", [0, 2])
    def test_a_row_names_the_risk_the_rival_and_the_advice(self, num_passed_over):
        report = {"num_audited": 7, "num_passed_over": num_passed_over, "data": [ROW, {**ROW, "rivals": []}]}
        text = shown(confusability_table(report))
        for part in ("2 of 7 adapters", "sums-again", ">= 11.3%", "1.02", "0.98", "merge"):
            assert part in text
        assert ("2 without comparable samples" in text) is bool(num_passed_over)


class TestRivalTable:
    def test_every_rival_has_a_row(self):
        text = shown(rival_table(ROW))
        for part in ("sums-again", "poems", "44.3%", "9.50"):
            assert part in text
