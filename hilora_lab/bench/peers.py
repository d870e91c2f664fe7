"""What others do with the same weights and adapters: transformers' `generate` and continuous batching, PEFT.

Each peer runs on modules of its own over the shared weights, as its library makes them. A call takes prompts of one
length and answers how fast tokens came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hilora_lab.bench.model_shape import twin_of
from services.worker.models.loader import LoadedModel

Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Output tokens per second."""

    end_to_end: float
    """Over the whole time, prompts included."""
    decode: float
    """Over the time in which every request had its first token."""


Peer = Callable[[Prompts, int], Speed]
"""The speed for prompts and a number of new tokens each, at least two."""

_PAD_TOKEN_ID = 2
_NUM_ARROW_EXPERTS = 3
"""As many adapters as a plan has candidates."""
_CB_PAGE_SIZE = 256
_CB_POLL_SECONDS = 1.0


def generate_peer(base: LoadedModel) -> Peer:
    """`generate` of the base alone."""
    return _generating(twin_of(base).model)


def peft_mixed_peer(base: LoadedModel, folders: Sequence[Path]) -> Peer:
    """PEFT with one adapter per row, chosen by `adapter_names`."""
    from peft import PeftModel

    names = [folder.name for folder in folders]
    model = PeftModel.from_pretrained(twin_of(base).model, folders[0], adapter_name=names[0])
    for folder in folders[1:]:
        model.load_adapter(str(folder), adapter_name=folder.name)
    model.eval()
    return _generating(model, lambda size: {"adapter_names": [names[idx % len(names)] for idx in range(size)]})


def peft_arrow_peer(base: LoadedModel, folders: Sequence[Path]) -> Peer:
    """PEFT's Arrow: each token's adapters weighed by prototypes, over all adapters."""
    from peft import ArrowConfig, create_arrow_model

    config = ArrowConfig(top_k=_NUM_ARROW_EXPERTS, router_temperature=1.0)
    model = create_arrow_model(
        base_model=twin_of(base).model,
        task_specific_adapter_paths=[str(folder) for folder in folders],
        arrow_config=config,
    )
    model.eval()
    return _generating(model)


@contextmanager
def continuous_batching_peer(
    base: LoadedModel, *, num_prompts: int, max_len: int, chunk_tokens: int
) -> Generator[Peer]:
    """Continuous batching of the base alone by transformers, its loop running for as long as the context is open.

    Args:
        base: the model.
        num_prompts: requests at once; memory for their keys and values is taken up front.
        max_len: prompt and answer of one.
        chunk_tokens: tokens of one step at most.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = twin_of(base).model
    num_blocks = num_prompts * (-(-max_len // _CB_PAGE_SIZE) + 1)
    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=_PAD_TOKEN_ID),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_CB_PAGE_SIZE,
            num_blocks=num_blocks,
            max_batch_tokens=chunk_tokens,
            allow_block_sharing=False,
        ),
        warmup=False,
    ) as manager:

        def run(prompts: Prompts, new_tokens: int) -> Speed:
            started_at = time.perf_counter()
            manager.add_requests(
                inputs=[list(prompt) for prompt in prompts], max_new_tokens=new_tokens, record_timestamps=True
            )
            times: list[list[float]] = []
            while len(times) < len(prompts):
                result = manager.get_result(timeout=_CB_POLL_SECONDS)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("transformers' continuous batching has ended before its requests")
                elif result.is_finished():
                    times.append(result.timestamps)
            return _speed(times, started_at=started_at, num_expected=len(prompts) * new_tokens)

        yield run


def _generating(model: Any, options: Callable[[int], dict[str, Any]] = lambda _: {}) -> Peer:
    from transformers import GenerationConfig

    def run(prompts: Prompts, new_tokens: int) -> Speed:
        token_ids = torch.tensor(prompts)
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=_PAD_TOKEN_ID
        )
        clock = _TokenClock()
        started_at = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                generation_config=config,
                streamer=clock,
                **options(len(prompts)),
            )
        times = [clock.times] * len(prompts)
        return _speed(times, started_at=started_at, num_expected=len(prompts) * new_tokens)

    return run


class _TokenClock:
    """A streamer for `generate` that notes when each token came, for all rows at once."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 -- transformers' protocol
        if self._has_prompt:
            self.times.append(time.perf_counter())
        # The first call brings the prompts.
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is held back."""


def _speed(times: Sequence[Sequence[float]], *, started_at: float, num_expected: int) -> Speed:
    """The speed of a run from the times of each request's tokens."""
    all_times = [at for of_request in times for at in of_request]
    if len(all_times) != num_expected:
        raise RuntimeError(f"a peer generated {len(all_times)} tokens instead of {num_expected}: it is not comparable")
    begin, end = max(of_request[0] for of_request in times), max(all_times)
    return Speed(
        end_to_end=num_expected / (end - started_at), decode=sum(at > begin for at in all_times) / (end - begin)
    )
