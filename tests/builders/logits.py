"""What an engine computed, logit by logit, and what a model computes without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from tests.builders.engine import Recorder, run_until_done, submit


class LogitRecorder:
    """Keeps the logits of every sampled token, by request and position."""

    def __init__(self, engine: Engine) -> None:
        self.logits: dict[tuple[str, int], torch.Tensor] = {}
        runner = engine._runner
        execute = runner.execute

        def recording(batch):
            logits = execute(batch)
            for active, row in zip(batch.sampling, logits, strict=True):
                self.logits[active.request_id, active.num_tokens - 1] = row.clone()
            return logits

        runner.execute = recording

    def of(self, request_id: str) -> torch.Tensor:
        """`[positions, V]` in order."""
        return torch.stack([row for (owner, _), row in sorted(self.logits.items()) if owner == request_id])


def random_prompt(length: int, seed: int = 0) -> list[int]:
    """Token ids that no architecture of the builders gives a meaning to."""
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run_prompts(
    engine: Engine, prompts: Mapping[str, list[int]], plans: Mapping[str, RoutingPlan], **sampling: Any
) -> dict[str, Recorder]:
    """Submit all prompts at once, run them to their ends, check the engine's accounts."""
    recorders = {
        name: submit(engine, name, prompt, plan=plans.get(name), **sampling) for name, prompt in prompts.items()
    }
    run_until_done(engine, *recorders.values())
    engine.check_integrity()
    return recorders


def full_forward_logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits of every position that the engine sampled from, by one pass over the whole sequence without a cache."""
    ids = torch.tensor([prompt + completion[:-1]])
    with torch.inference_mode():
        return model(input_ids=ids).logits[0, len(prompt) - 1 :]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    """Equal up to a share of the largest value."""
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max().item() <= tolerance * expected.abs().max().item()
