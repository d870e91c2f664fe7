from __future__ import annotations

import pytest
import torch

from hilora_lab.bench.gpu_bench import GpuBenchOrder, run_gpu_bench
from hilora_lab.bench.model_shape import build_base, find_shape
from hilora_lab.bench.roofline import step_reads
from hilora_lab.bench.workload import ALL_LINEARS, features_of


@pytest.fixture(scope="module")
def llama():
    return build_base(find_shape("llama-3.1-8b"), dtype=torch.bfloat16, device="meta")


class TestStepReads:
    @pytest.mark.parametrize(
        ("batch_size", "num_candidates", "num_active", "share"),
        [
            (1, 64, 16, 0.987),
            (32, 32 * 64, 32 * 16, 0.748),
            (32, 320, 258, 0.928),
            (128, 128 * 64, 128 * 16, 0.553),
            (128, 320, 320, 0.950),
        ],
    )
    def test_shares_of_an_8b_model_at_a_context_of_1024(self, llama, batch_size, num_candidates, num_active, share):
        reads = step_reads(
            llama,
            features_of(llama.model, ALL_LINEARS),
            batch_size=batch_size,
            context_len=1024,
            num_candidate_rows=num_candidates,
            num_active_rows=num_active,
        )

        assert reads.kept_share == pytest.approx(share, abs=0.001)

    def test_one_component_of_all_layers_is_five_megabytes(self, llama):
        reads = step_reads(
            llama,
            features_of(llama.model, ALL_LINEARS),
            batch_size=1,
            context_len=1,
            num_candidate_rows=1,
            num_active_rows=1,
        )

        assert reads.roc_bytes == pytest.approx(5.24e6, rel=0.001)


class TestGpuBench:
    def test_distinct_sets_hold_more_components_than_the_pool_of_a_batch(self):
        order = GpuBenchOrder(
            shape="tiny",
            device="cpu",
            dtype=torch.float32,
            batch_sizes=(6,),
            prompt_len=6,
            new_tokens=4,
            num_rounds=1,
        )

        rows = {row["popularity"]: row for row in run_gpu_bench(order)["decode"]}

        assert rows["all_distinct"]["num_rocs_on_device"] == 6 * 64
        assert rows["resident_pool"]["num_rocs_on_device"] <= 320
        assert rows["all_distinct"]["roofline_share"] < rows["resident_pool"]["roofline_share"]
        assert all(row["share_kept"]["n"] == 1 for row in rows.values())
