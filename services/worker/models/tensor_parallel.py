"""One base model over several processes, by transformers' own tensor parallel plan.

Shapes: T rows, D features, n processes.

torchrun starts the processes. The one of rank 0 leads: it takes requests, decides each step, and tells the others, who
run the same forward pass with their shards. There are two channels. On *control*, followers wait for ever, since nobody
knows when the next request comes; it breaks as soon as the leader is gone. Whatever else one process waits for another
one, on *data* within a step or for being heard, has a deadline: one that stops must not hold up the others for good.

A step that failed in one process cannot be repeated by the others, who are waiting somewhere inside of it. So a group
that fails ends its process, and whoever watches over the processes starts all of them anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from hilora.errors import InvalidInput

_log = logging.getLogger(__name__)

EXIT_STATUS = 70
"""Of a process whose group failed: an internal error, as sysexits.h counts."""
_KEY_PROJECTIONS = (".k_proj", ".qkv_proj", ".query_key_value")
"""Layers that make keys, by their names in transformers' plans."""
_FOR_EVER = timedelta(days=3650)


def exit_process(error: BaseException) -> NoReturn:
    """End this process at once, whatever its threads are waiting for."""
    _log.critical("the group of processes that share the model failed; this one ends", exc_info=error)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_STATUS)


class ParallelGroup:
    """The processes that share a model, as one of them sees them.

    Args:
        rank: of this process; 0 leads.
        size: how many there are.
        device: where this process's shard goes.
        control: the channel on which the leader speaks.
        on_failure: what to do when the group has failed; it does not return.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        device: torch.device,
        control: Any,
        on_failure: Callable[[BaseException], NoReturn] = exit_process,
    ) -> None:
        self._rank = rank
        self._size = size
        self.device = device
        self._control = control
        self._on_failure = on_failure

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._size

    @property
    def is_leader(self) -> bool:
        """Whether this process decides."""
        return self._rank == 0

    def tell(self, message: object) -> None:
        """Leader: give every follower a message, which must be picklable."""
        assert self.is_leader, "only the leader tells"
        dist.broadcast_object_list([message], src=0, group=self._control)

    def hear(self) -> Any:
        """Follower: the leader's next message, however long it takes; None is its last."""
        assert not self.is_leader, "the leader hears nobody"
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._control)
        return heard[0]

    def share(self, tensor: torch.Tensor) -> None:
        """Give the leader's values of a contiguous tensor to everybody, in place. All processes call it."""
        dist.broadcast(tensor, src=0)

    def gather_columns(self, part_TD: torch.Tensor) -> torch.Tensor:
        """All processes' columns `[T, D / n]` side by side: `[T, D]`. All processes call it."""
        num_rows, num_columns = part_TD.shape
        parts_TD = part_TD.new_empty(self._size * num_rows, num_columns)
        # The name changed in torch 2.13, and the old one warns there.
        gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(parts_TD, part_TD.contiguous())
        return parts_TD.view(self._size, num_rows, num_columns).transpose(0, 1).reshape(num_rows, -1)

    def fail(self, error: BaseException) -> NoReturn:
        """A step broke in the middle: the group is of no use any more."""
        self._on_failure(error)

    def release(self) -> None:
        """Leader: tell the followers that nothing more comes."""
        try:
            self.tell(None)
        except RuntimeError as error:
            self.fail(error)

    def leave(self) -> None:
        """Give up the channels, after the leader has released the followers."""
        dist.destroy_process_group()


def join_parallel_group(
    *, rank: int, size: int, local_rank: int, device: str, step_timeout_seconds: float
) -> ParallelGroup:
    """Meet the other processes that torchrun started. Blocks until all of them have come.

    Args:
        rank: of this process.
        size: how many there are.
        local_rank: which of this machine's processes it is, and so which of its GPUs it takes.
        device: `auto`, `cpu` or `cuda`.
        step_timeout_seconds: how long a process waits for another one inside a step, and the leader for being heard.

    Raises:
        InvalidInput: `invalid_device`: a certain GPU was asked for, though each process has one of its own.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise InvalidInput(
            f"{device} was asked for, but {size} processes share the model, each on a device of its own.",
            code="invalid_device",
            remedy="Use auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among the GPUs.",
            place="device",
        )
    has_gpu = device != "cpu" and torch.cuda.is_available()
    target = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(target)
    deadline = timedelta(seconds=step_timeout_seconds)
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=deadline)
    control: Any = dist.new_group(backend="gloo", timeout=deadline if rank == 0 else _FOR_EVER)
    return ParallelGroup(rank=rank, size=size, device=target, control=control)


def sharding_options(group: ParallelGroup, *, quantization: str | None, has_encoder: bool = False) -> dict[str, Any]:
    """What `from_pretrained` takes so that each process loads its own shard.

    Args:
        group: the processes.
        quantization: what the weights are to be quantised to while loading.
        has_encoder: whether an encoder reads the model's prompts.

    Raises:
        InvalidInput: `tensor_parallel_unsupported`: the weights would have to be divided and quantised at once, or
            nobody has planned how to divide them.
    """
    from transformers.distributed import DistributedConfig  # pyright: ignore[reportPrivateImportUsage]

    if has_encoder:
        raise InvalidInput(
            "transformers has no plan by which to divide a base with an encoder among processes.",
            code="tensor_parallel_unsupported",
            remedy="Start one process.",
            place="base_model",
        )
    if quantization is not None:
        raise InvalidInput(
            f"A base that is quantised while loading ({quantization}) cannot be divided among processes.",
            code="tensor_parallel_unsupported",
            remedy="Leave quantization out, or start one process.",
            place="quantization",
        )
    return {"distributed_config": DistributedConfig(tp_size=group.size)}


def num_local_key_value_heads(model: Any, num_heads: int, group: ParallelGroup) -> int:
    """How many of a layer's key-value heads this process computes.

    Args:
        model: sharded.
        num_heads: those of the whole layer.
        group: the processes.

    Raises:
        InvalidInput: `tensor_parallel_unsupported`: they cannot have equally many.
    """
    styles: dict[str, str] = model.tp_plan
    has_shards = any(path.endswith(_KEY_PROJECTIONS) and style == "colwise" for path, style in styles.items())
    if not has_shards:
        # The plan gathers what such a layer puts out before it is cut into heads.
        return num_heads
    if num_heads % group.size:
        raise InvalidInput(
            f"{num_heads} key-value heads cannot be divided among {group.size} processes.",
            code="tensor_parallel_unsupported",
            remedy=f"Start as many processes as divide {num_heads}.",
            place="base_model",
        )
    return num_heads // group.size
