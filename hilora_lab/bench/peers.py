"""What others do with the same weights and adapters: transformers' `generate` and continuous batching, PEFT.

Each peer runs on modules of its own over the shared weights, as its library makes them. A call takes prompts of one
length and answers how many tokens a second came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hilora_lab.bench.model_shape import twin_of
from services.worker.models.loader import LoadedModel

Prompts = Sequence[tuple[int, ...]]
Peer = Callable[[Prompts, int], float]
"""Output tokens per second for prompts and a number of new tokens each."""

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

        def run(prompts: Prompts, new_tokens: int) -> float:
            started_at = time.perf_counter()
            manager.add_requests(inputs=[list(prompt) for prompt in prompts], max_new_tokens=new_tokens)
            num_tokens = num_ended = 0
            while num_ended < len(prompts):
                result = manager.get_result(timeout=_CB_POLL_SECONDS)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("transformers' continuous batching has ended before its requests")
                elif result.is_finished():
                    num_ended += 1
                    num_tokens += len(result.generated_tokens)
            _require(num_tokens, len(prompts) * new_tokens)
            return num_tokens / (time.perf_counter() - started_at)

        yield run


def _generating(model: Any, options: Callable[[int], dict[str, Any]] = lambda _: {}) -> Peer:
    from transformers import GenerationConfig

    def run(prompts: Prompts, new_tokens: int) -> float:
        token_ids = torch.tensor(prompts)
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=_PAD_TOKEN_ID
        )
        started_at = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                generation_config=config,
                **options(len(prompts)),
            )
        seconds = time.perf_counter() - started_at
        num_tokens = output.numel() - token_ids.numel()
        _require(num_tokens, len(prompts) * new_tokens)
        return num_tokens / seconds

    return run


def _require(num_tokens: int, expected: int) -> None:
    if num_tokens != expected:
        raise RuntimeError(f"a peer generated {num_tokens} tokens instead of {expected}: it is not comparable")
