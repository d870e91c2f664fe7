"""A testbed's base with all its adapters loaded through transformers and PEFT: the ground every score stands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from hilora_lab.testbed.batches import TokenizedExample, tokenize_example
from hilora_lab.testbed.exact_match import is_answered
from hilora_lab.testbed.folder import TaskLine, Testbed
from hilora_lab.testbed.tasks import Example


@dataclass(frozen=True, kw_only=True)
class AdapterPool:
    """The loaded base and its adapters, one of which (or none) is active at a time."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerFast

    @contextmanager
    def active(self, adapter_name: str | None) -> Iterator[PeftModel]:
        """The model with one adapter switched on, or the bare base for `None`."""
        if adapter_name is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(adapter_name)
            yield self.model

    def tokenized(self, lines: Sequence[TaskLine]) -> list[TokenizedExample]:
        """Ids of prompts and answers."""
        return [tokenize_example(self.tokenizer, Example(prompt=line.prompt, answer=line.answer)) for line in lines]

    def answered(self, adapter_name: str | None, lines: Sequence[TaskLine]) -> list[bool]:
        """For each line whether greedy decoding with that adapter gives exactly its answer."""
        with self.active(adapter_name) as model:
            return is_answered(model, self.tokenized(lines))

    def exact_match(self, adapter_name: str | None, lines: Sequence[TaskLine]) -> float:
        """The share of lines answered exactly."""
        answered = self.answered(adapter_name, lines)
        return sum(answered) / len(answered)


def load_pool(testbed: Testbed, adapter_names: Sequence[str] | None = None) -> AdapterPool:
    """Load the base and the adapters named (all by default) from a testbed folder.

    Raises:
        ValueError: no adapter is asked for.
    """
    names = testbed.adapter_names if adapter_names is None else tuple(adapter_names)
    if not names:
        raise ValueError("a pool needs at least one adapter")
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(testbed.base_folder))
    base = cast("LlamaForCausalLM", AutoModelForCausalLM.from_pretrained(testbed.base_folder))
    model = PeftModel.from_pretrained(base, str(testbed.adapter_folder(names[0])), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(testbed.adapter_folder(name)), adapter_name=name)
    model.eval()
    return AdapterPool(model=model, tokenizer=tokenizer)
