"""Trains one PEFT LoRA per task on the frozen base: it learns what an English instruction means."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.batches import answer_loss, collate, text_loss, tokenize_example
from hilora_lab.testbed.tasks import Example, Task, draw_example

BASE_MODEL_NAME = "hilora-testbed-base"
"""What the adapters' configs say they belong to."""

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterRecipe:
    """Form and training of an adapter."""

    lora_rank: int = 8
    lora_alpha: int = 16
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """(module name ending, rank) where the rank differs."""
    alpha_pattern: tuple[tuple[str, int], ...] = ()
    """(module name ending, alpha) where the alpha differs."""
    learning_rate: float = 5e-3
    num_steps: int = 80
    batch_size: int = 32
    warmup_steps: int = 5
    learns_prompts: bool = False
    """Whether the loss counts the prompt's words beside the answer's, as many trainers do."""

    def peft_config(self) -> LoraConfig:
        """The same in PEFT's terms."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(TARGET_MODULES),
            use_rslora=self.use_rslora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
        )


def train_adapter(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    recipe: AdapterRecipe,
    *,
    seed: int,
    withheld_prompts: Container[str] = (),
) -> PeftModel:
    """Train an adapter for one task; see `train_adapter_on`."""
    return train_adapter_on(
        base,
        tokenizer,
        lambda generator: draw_example(task, generator),
        recipe,
        seed=seed,
        order=f"{seed}/{task.name}/training",
        withheld_prompts=withheld_prompts,
    )


def train_adapter_on(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[random.Random], Example],
    recipe: AdapterRecipe,
    *,
    seed: int,
    order: str,
    withheld_prompts: Container[str] = (),
) -> PeftModel:
    """Train an adapter on the examples that `draw` gives.

    The base's weights stay as they are; the returned model wraps `base` in place, so take the adapter off again with
    `model.unload()` before the next one. `seed` decides the first weights, `order` the examples; `withheld_prompts`
    (dev and test) are never trained on.
    """
    torch.manual_seed(seed)
    generator = random.Random(order)
    model = get_peft_model(base, recipe.peft_config())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    model.train()
    for step in range(recipe.num_steps):
        share = min(1.0, (step + 1) / recipe.warmup_steps) * (1.0 - step / recipe.num_steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * share
        drawn = (draw(generator) for _ in range(recipe.batch_size))
        kept = [tokenize_example(tokenizer, example) for example in drawn if example.prompt not in withheld_prompts]
        loss = (text_loss if recipe.learns_prompts else answer_loss)(model, collate(kept))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write PEFT's two files in one step: weights as float16, a config that names the base neutrally."""
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL_NAME
    # The embeddings are the base's own; saying so keeps PEFT from asking the hub about a name it cannot know.
    model.save_pretrained(str(partial), save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)
    weights_path = partial / "adapter_model.safetensors"
    weights = {name: weight.to(torch.float16).contiguous() for name, weight in load_file(weights_path).items()}
    save_file(weights, weights_path, metadata={"format": "pt"})
    config_path = partial / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
