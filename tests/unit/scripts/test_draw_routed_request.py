from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ROOT / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_routed_request", ROOT / "scripts" / "draw_routed_request.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record():
    return json.loads((IMAGES / "routed_request.json").read_text())


def squares(drawing):
    """Classes of the squares that stand for rank-one components."""
    return [rect.get("class") for rect in drawing.iter(f"{SVG}rect") if rect.get("width") == rect.get("height") == "11"]


class TestPicture:
    def test_the_readmes_picture_is_what_its_saved_answer_draws(self, script, record):
        assert (IMAGES / "routed_request.svg").read_text() == script.draw(record)

    def test_every_component_is_a_square_and_the_granted_ones_are_filled(self, script, record):
        budgets = record["route"]["plan"]["budgets"]

        drawn = squares(ET.fromstring(script.draw(record)))

        assert len(drawn) == sum(budget["lora_rank"] for budget in budgets)
        assert len([kind for kind in drawn if "hollow" not in kind]) == record["route"]["plan"]["num_rocs"]

    def test_text_of_a_stranger_stays_text(self, script, record):
        record["text"] = 'a <script>alert("x")</script> & b'

        drawing = ET.fromstring(script.draw(record))

        assert not list(drawing.iter(f"{SVG}script"))

    def test_a_request_for_the_base_alone_can_be_drawn(self, script, record):
        record["route"]["plan"] = {"budgets": [], "num_rocs": 0}
        for candidate in record["route"]["candidates"]:
            candidate["num_rocs"] = 0

        drawing = ET.fromstring(script.draw(record))

        assert squares(drawing) == []
        assert any("base alone" in (text.text or "") for text in drawing.iter(f"{SVG}text"))
