"""The data here is made up: real task texts with other licences stay outside the project."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from hilora.errors import InvalidInput
from hilora_lab.bench.embedding_cache import CachedEncoder
from hilora_lab.bench.routing_bench import DEFAULT_SCORER, run_routing_bench, sample_warnings
from hilora_lab.bench.routing_data import read_routing_data
from hilora_lab.bench.routing_lexical import TfIdfPool, count_ngrams
from hilora_lab.bench.routing_metrics import RankedQueries, interval_over_tasks, without_own
from hilora_lab.bench.routing_scorers import fit_any_temperature
from tests.fakes.router_encoder import HashEncoder

CONTRACT = {
    *("top1", "top3", "top5", "top10", "cluster1", "temperature", "ece", "set90_size", "set90_coverage"),
    *("removed_cluster1", "removed_cluster3"),
}
SCORERS = {
    *("cosine", "full_covariance", "diagonal", "ledoit_wolf", "pooled_eb", "lexical", "nearest_sample", "lm"),
    *("wording", "hybrid_010", "hybrid_025", "hybrid_lm_025", "hybrid_lm_050", "stacked_lexical", "stacked"),
}
TOPICS = ["rain", "bread", "chess", "trains", "gardens", "planets"]
VERBS = ["translate", "summarise"]


def rows() -> list[dict[str, object]]:
    """Twelve tasks: six topics under two instructions. A cluster is an instruction."""
    made: list[dict[str, object]] = []
    for verb in VERBS:
        for topic in TOPICS:
            rng = np.random.default_rng([VERBS.index(verb), TOPICS.index(topic)])
            for number in range(12):
                words = " ".join(f"{topic}{rng.integers(9)}" for _ in range(4))
                made.append(
                    {
                        "task": f"{verb}-{topic}",
                        "cluster": verb,
                        "split": "fit" if number < 8 else "dev",
                        "text": f"{verb} the following words now: {words}",
                        "input_only": words if number % 2 else None,
                    }
                )
    made.append({"task": None, "cluster": None, "split": "dev", "text": "of nobody", "input_only": None})
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made_up.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows())
    return path


def read(file: Path, **changes):
    return read_routing_data(file, HashEncoder(), **{"query_split": "dev", "field": "text", **changes})


class TestData:
    def test_samples_and_queries_belong_to_their_tasks(self, file):
        data = read(file)
        assert [task.name for task in data.tasks] == sorted(f"{verb}-{topic}" for verb in VERBS for topic in TOPICS)
        assert (len(data.samples), len(data.queries)) == (96, 48)
        assert data.ordinals.tolist() == list(range(8)) * 12
        for text, place in zip(data.queries.texts, data.query_task_N, strict=True):
            verb, topic = data.tasks[place].name.split("-")
            assert text.startswith(verb) and topic in text

    def test_without_an_instruction_the_request_stands_in_where_there_is_no_other(self, file):
        texts = read(file, field="input_only").queries.texts
        assert sum("following words" in text for text in texts) == 24

    def test_tasks_keep_as_many_samples_as_they_are_told_in_turn(self, file):
        counts = np.bincount(read(file, samples=(2, 8)).sample_task_N)
        assert counts.tolist() == [2, 8] * 6

    @pytest.mark.parametrize(
        "line", ["{", "3", '{"task": "a", "split": "fit"}', '{"task": 1, "split": "fit", "text": ""}']
    )
    def test_what_is_no_row_is_refused(self, tmp_path, line):
        (tmp_path / "a.jsonl").write_text(line)
        with pytest.raises(InvalidInput) as raised:
            read(tmp_path / "a.jsonl")
        assert raised.value.code == "invalid_routing_data"

    def test_a_split_that_nobody_has_is_refused(self, file):
        with pytest.raises(InvalidInput, match="0 queries of 'test'"):
            read(file, query_split="test")


class TestRun:
    @pytest.fixture(scope="class")
    def report(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("routing") / "made_up.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
        steps: list[tuple[str, int, int]] = []
        report = run_routing_bench(read(path), on_progress=lambda *step: steps.append(step))
        assert steps[-1][1] == steps[-1][2]
        return json.loads(json.dumps(report))

    def test_every_scorer_has_every_figure_of_the_contract(self, report):
        assert set(report["scorers"]) == SCORERS
        assert report["default"] == DEFAULT_SCORER
        for figures in report["scorers"].values():
            assert figures.keys() >= CONTRACT
            assert all(isinstance(figures[key], float) for key in CONTRACT)

    def test_figures_are_shares_in_order(self, report):
        for figures in report["scorers"].values():
            assert 0.0 <= figures["top1"] <= figures["top3"] <= figures["top5"] <= figures["top10"] <= 100.0
            assert figures["top1_ci"][0] <= figures["top1"] <= figures["top1_ci"][1]
            assert 1.0 <= figures["set90_size"] <= 12.0

    def test_wording_and_meaning_together_find_what_is_told_apart_by_both(self, report):
        assert report["scorers"]["stacked"]["top1"] > 90.0
        assert report["scorers"]["stacked"]["removed_cluster3"] > 90.0
        assert report["product"]["lexical_weight"] > 0.0

    def test_the_gain_is_the_difference(self, report):
        scorers = report["scorers"]
        assert report["gain"]["top1"] == pytest.approx(
            scorers["stacked"]["top1"] - scorers["pooled_eb"]["top1"], abs=0.01
        )


class TestMetrics:
    def ranked(self, posterior: list[list[float]], true: list[int], clusters: list[int]) -> dict[str, float]:
        posterior_NL, true_idx_N = np.array(posterior), np.array(true)
        return RankedQueries(
            posterior_NL=posterior_NL,
            without_own_NL=without_own(posterior_NL, true_idx_N),
            true_idx_N=true_idx_N,
            cluster_L=np.array(clusters),
        ).summary()

    def test_they_are_what_can_be_counted_by_hand(self):
        figures = self.ranked(
            [[0.7, 0.25, 0.05, 0.0], [0.5, 0.1, 0.1, 0.3], [0.05, 0.92, 0.02, 0.01]], [0, 3, 2], [0, 0, 1, 1]
        )
        assert figures["top1"] == pytest.approx(100 / 3, abs=0.01)
        assert figures["top3"] == 100.0
        assert figures["cluster1"] == pytest.approx(100 / 3, abs=0.01)
        assert figures["set90_size"] == pytest.approx((2 + 3 + 1) / 3, abs=0.01)
        assert figures["set90_coverage"] == pytest.approx(200 / 3, abs=0.01)
        # Without its own adapter the first goes to its sister, the second and the third to the other cluster.
        assert figures["removed_cluster1"] == pytest.approx(100 / 3, abs=0.01)
        assert figures["removed_cluster3"] == 100.0

    def test_equal_ones_are_no_success(self):
        assert self.ranked([[0.5, 0.5]], [0], [0, 1])["top1"] == 0.0

    def test_a_task_without_relatives_does_not_count_where_it_is_removed(self):
        assert self.ranked([[0.6, 0.4, 0.0], [0.1, 0.1, 0.8]], [0, 2], [0, 0, 1])["removed_cluster1"] == 100.0

    def test_intervals_draw_tasks_and_not_queries(self):
        values = np.repeat([0.0, 1.0], 500)
        assert interval_over_tasks(values, np.repeat([0, 1], 500)) == (0.0, 1.0)
        low, high = interval_over_tasks(values, np.arange(1000))
        assert 0.45 < low < 0.5 < high < 0.55

    def test_any_unit_gets_its_temperature(self):
        rng = np.random.default_rng(0)
        scores = rng.standard_normal((4000, 8))
        whose = (scores / 0.5 + rng.gumbel(size=scores.shape)).argmax(axis=1)
        for unit in (1e-3, 1.0, 1e4):
            assert fit_any_temperature(unit * scores, whose) == pytest.approx(0.5 * unit, rel=0.1)


class TestLexical:
    def test_counts_are_those_of_the_windows(self):
        counts = count_ngrams(["abcabc", "ab", ""])
        # abc twice, bca, cab; abca, bcab, cabc; abcab, bcabc
        assert sorted(counts[0].data.tolist()) == [1.0] * 7 + [2.0]
        assert (counts[1].nnz, counts[2].nnz) == (0, 0)

    def test_a_sample_is_nearest_to_itself(self):
        texts = ["red apples", "red cars", "blue birds sing", "blue whales"]
        pool = TfIdfPool.fit(count_ngrams(texts), np.array([0, 0, 1, 1]), 2)
        assert pool.nearest_sample(count_ngrams(texts)).max(axis=1) == pytest.approx([1.0] * 4)
        assert pool.summed_cosine(count_ngrams(texts)).argmax(axis=1).tolist() == [0, 0, 1, 1]


class TestCache:
    def test_a_text_is_embedded_once(self, tmp_path):
        asked: list[str] = []

        class Listening(HashEncoder):
            def encode(self, texts):
                asked.extend(texts)
                return super().encode(texts)

        path = tmp_path / "folder" / "embeddings.safetensors"
        first = CachedEncoder(Listening(), path).encode(["one", "two"])
        again = CachedEncoder(Listening(), path).encode(["two", "three", "one"])
        assert asked == ["one", "two", "three"]
        assert np.array_equal(again[[2, 0]], first)
        assert b"three" not in path.read_bytes()


@pytest.mark.parametrize(
    ("counts", "num_warnings"), [([20, 20], 0), ([20, 5], 0), ([21, 5], 1), ([4, 4], 1), ([3, 40], 2)]
)
def test_few_and_uneven_samples_are_warned_of(counts, num_warnings):
    assert len(sample_warnings(np.array(counts))) == num_warnings
