"""Factors for every task, as a folder."""

from __future__ import annotations

import pytest

from hilora.errors import InvalidInput
from hilora_lab.training.lorahub import LorahubRecipe
from hilora_lab.training.lorahub_tasks import draws_of, learn_each_task, read_task_weights
from tests.builders.models import make_model
from tests.unit.hilora_lab.training import test_gate_training as gates

POOL = [f"a{place}" for place in range(30)]


class TestDraws:
    def test_the_own_adapter_is_always_drawn_and_once_never(self):
        with_own, without_own = draws_of(["a3"], POOL, num_drawn=5, seed=0)

        assert "a3" in with_own.names
        assert "a3" not in without_own.names
        assert len(set(with_own.names)) == len(set(without_own.names)) == 5
        assert (with_own.file_name, without_own.file_name) == ("a3.json", "a3.without-own.json")

    def test_a_task_without_an_adapter_is_searched_once(self):
        (only,) = draws_of(["new"], POOL, num_drawn=5, seed=0)

        assert only.file_name == "new.json"

    def test_a_seed_decides(self):
        assert draws_of(["a3"], POOL, num_drawn=5, seed=1) == draws_of(["a3"], reversed(POOL), num_drawn=5, seed=1)
        assert draws_of(["a3"], POOL, num_drawn=5, seed=1) != draws_of(["a3"], POOL, num_drawn=5, seed=2)


class TestFolder:
    def test_what_is_written_is_read_and_an_interrupted_search_goes_on(self, tmp_path):
        recipe = LorahubRecipe(num_evaluations=4, seed=0)
        examples = {**gates.examples(), "new": gates.examples()["one"]}
        model, told = make_model(), []

        def search() -> list[str]:
            return learn_each_task(
                model,
                gates.pool(),
                examples,
                tmp_path,
                num_drawn=2,
                recipe=recipe,
                on_task=lambda *done: told.append(done),
            )

        written = search()
        (tmp_path / "new.json").unlink()
        kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        search()
        with_own, without_own = read_task_weights(tmp_path)

        assert set(with_own) == {*gates.NAMES, "new"}
        assert set(without_own) == set(gates.NAMES)
        assert all(name in with_own[name] and name not in without_own[name] for name in gates.NAMES)
        assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in kept.items())
        assert told[len(written) - 1] == (written[-1], len(written), len(written))

    def test_a_broken_file_is_refused(self, tmp_path):
        (tmp_path / "one.json").write_text("{}")

        with pytest.raises(InvalidInput) as raised:
            read_task_weights(tmp_path)

        assert raised.value.code == "invalid_weights_file"
