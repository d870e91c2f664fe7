"""What the registry's benchmark is fed with: adapters that are accepted, texts that can be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hilora.confusability import whitened_pairwise_distances
from hilora.empirical_bayes import fit_pooled_eb
from hilora.peft_format import read_peft_adapter
from hilora_lab.bench.search_figures import measure_search
from hilora_lab.bench.synthetic_pool import EMBEDDING_DIM, AdapterWriter, task_texts, write_encoder
from services.common.sequence_encoder import SentenceTransformerEncoder
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.router.pool_index import IndexKind

SHIPPED = Path(__file__).resolve().parents[4] / "examples" / "testbed" / "adapters" / "reverse-letters"


class TestAdapters:
    def test_a_folder_is_a_peft_adapter_in_the_testbeds_shapes(self, tmp_path):
        AdapterWriter(SHIPPED).write(3, tmp_path / "task-3")
        read = [
            read_peft_adapter(
                config=json.loads((folder / "adapter_config.json").read_text()),
                tensors=HardenedSafetensorsReader().tensors(folder / "adapter_model.safetensors"),
            )
            for folder in (SHIPPED, tmp_path / "task-3")
        ]
        shapes = [{path: factors.lora_a.shape for path, factors in adapter.modules.items()} for adapter in read]
        assert shapes[0] == shapes[1]
        assert len((tmp_path / "task-3" / "samples.jsonl").read_text().splitlines()) == 20

    def test_equal_tasks_are_equal_and_others_are_not(self):
        assert task_texts(5) == task_texts(5)
        assert task_texts(5) != task_texts(6)
        assert not set(task_texts(5)) & set(task_texts(5, first=20))


class TestEncoder:
    def test_a_new_text_lies_nearest_to_its_own_task(self, tmp_path):
        write_encoder(tmp_path / "encoder")
        encoder = SentenceTransformerEncoder(str(tmp_path / "encoder"))
        assert encoder.embedding_dim == EMBEDDING_DIM
        fitted = fit_pooled_eb([encoder.encode(task_texts(task)) for task in range(40)])
        own = encoder.encode([task_texts(task, first=50, num=1)[0] for task in range(40)])
        assert (fitted.log_likelihood(own).argmax(axis=1) == np.arange(40)).mean() > 0.7
        assert (whitened_pairwise_distances(fitted.gaussians)[~np.eye(40, dtype=bool)] > 0.1).all()


class TestSearchFigures:
    def test_exact_kinds_find_the_eight_best(self):
        figures = measure_search(3000, kinds=(IndexKind.EXACT, IndexKind.BYTE), num_texts=30)
        assert [figure.kind for figure in figures] == ["exact", "byte"]
        for figure in figures:
            assert figure.top_8_agreement == 1.0
            assert figure.search_ms > 0 and figure.num_adapters == 3000
