"""What is decided about a group of processes before they meet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hilora.errors import InvalidInput
from services.worker.models.tensor_parallel import (
    ParallelGroup,
    join_parallel_group,
    num_local_key_value_heads,
    sharding_options,
)
from services.worker.settings import ProcessPlace


def _group(size: int) -> ParallelGroup:
    return ParallelGroup(rank=0, size=size, device=torch.device("cpu"), control=None)


class TestHeads:
    _SHARDED = SimpleNamespace(tp_plan={"model.layers.*.self_attn.k_proj": "colwise"})
    _GATHERED = SimpleNamespace(tp_plan={"model.layers.*.self_attn.qkv_proj": "colwise_gather_output"})

    def test_they_are_divided_where_the_plan_divides_keys(self) -> None:
        assert num_local_key_value_heads(self._SHARDED, 8, _group(4)) == 2

    def test_all_of_them_stay_where_the_plan_gathers_keys(self) -> None:
        assert num_local_key_value_heads(self._GATHERED, 3, _group(2)) == 3

    def test_a_number_that_cannot_be_divided_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            num_local_key_value_heads(self._SHARDED, 6, _group(4))
        assert caught.value.code == "tensor_parallel_unsupported"


class TestOptions:
    def test_the_model_is_divided_among_all(self) -> None:
        assert sharding_options(_group(4), quantization=None)["distributed_config"].tp_size == 4

    def test_quantising_while_dividing_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            sharding_options(_group(2), quantization="bitsandbytes-nf4")
        assert caught.value.code == "tensor_parallel_unsupported"

    def test_one_gpu_for_several_processes_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            join_parallel_group(rank=0, size=2, local_rank=0, device="cuda:0", step_timeout_seconds=1)
        assert caught.value.code == "invalid_device"


class TestPlace:
    def test_torchrun_says_who_is_who(self, monkeypatch) -> None:
        for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        place = ProcessPlace()
        assert (place.rank, place.world_size, place.local_rank) == (3, 4, 1)
        assert ProcessPlace.alone().world_size == 1

    def test_without_it_there_is_one_process(self, monkeypatch) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        assert ProcessPlace() == ProcessPlace.alone()
