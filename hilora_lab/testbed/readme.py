"""The page that lies in a built testbed, written from its report so that the two cannot disagree."""

from __future__ import annotations

from typing import Any

_PAGE = """# A small trained pool

A base model, {num_adapters} LoRA adapters and the tasks they solve, trained by this project on a CPU. It is small
enough to ship and real enough to measure routing on: the files are those of transformers and PEFT, the answers are
either right or wrong.

| | |
|---|---|
| `base/` | Llama architecture, {num_layers} layers of width {hidden_size}; {base_kb} KB of float16, loads as float32 |
| `adapters/<task>/` | one PEFT LoRA a task, {adapters_kb} KB in all |
| `tasks.jsonl` | one object a line: `task, family, domain, split, prompt, answer` |
| `report.json` | recipe, versions, and every task's scores |

The format is described in `hilora_lab/testbed/folder.py`; other data may follow it.

A task is a family (a skill: {families}) in a domain (letters, digits, capitals).
The base owns these skills but follows no instruction: it was taught them under opaque codes. An adapter teaches it what
one task's English instructions mean. {unseen}
Prompts are an instruction in one of the family's wordings, a payload, and `=`:

    {prompt}
    {answer}

`fit` lines are an adapter's sample texts, `dev` lines are for choosing settings, `test` lines for reporting; no prompt
is in two of them, and no adapter was trained on a `dev` or `test` prompt. All three use the same wordings.
Adapters have rank {rank} for the most part; some are rank-stabilised, some have twice the rank, some a `rank_pattern`.

Exact match, {split} split, {num_prompts} prompts (greedy decoding through transformers and PEFT):

| family | base | own adapter | adapters of the same family, other domain |
|---|---|---|---|
{rows}
| **all** | **{base:.3f}** | **{own_adapter:.3f}** | **{siblings}** |

Made with `hilora lab build-testbed --out DIR --seed {seed}`: {base_steps} steps of {base_batch} prompts for the base,
{adapter_steps} steps of {adapter_batch} for each adapter. The seed repeats tasks and training data exactly; weights
are equal bit by bit only with the same versions, kind of CPU and number of threads.
"""


def readme_of(report: dict[str, Any], *, prompt: str, answer: str) -> str:
    """The page of a testbed.

    Args:
        report: the content of `report.json`.
        prompt: a prompt to show.
        answer: its answer.
    """
    tasks: list[dict[str, Any]] = report["tasks"]
    base, adapter, means = report["recipe"]["base"], report["recipe"]["adapter"], report["exact_match"]
    taught = _unique(task["family"] for task in tasks if task["own_adapter"] is not None)
    unseen = _unique(task["family"] for task in tasks if task["own_adapter"] is None)
    return _PAGE.format(
        num_adapters=means["num_tasks"],
        num_layers=base["num_layers"],
        hidden_size=base["hidden_size"],
        base_kb=report["size_bytes"]["base"] // 1024,
        adapters_kb=report["size_bytes"]["adapters"] // 1024,
        rank=adapter["lora_rank"],
        families=", ".join(taught),
        unseen=_unseen_sentence(unseen),
        prompt=prompt,
        answer=answer,
        split=report["split"],
        num_prompts=means["num_prompts"],
        rows="\n".join(_row(family, [task for task in tasks if task["family"] == family]) for family in taught),
        base=means["base"],
        own_adapter=means["own_adapter"],
        siblings=f"{means['siblings']:.3f}" if "siblings" in means else "",
        seed=report["recipe"]["seed"],
        base_steps=base["num_steps"],
        base_batch=base["batch_size"],
        adapter_steps=adapter["num_steps"],
        adapter_batch=adapter["batch_size"],
    )


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _unseen_sentence(families: list[str]) -> str:
    if not families:
        return ""
    return (
        f"The families {' and '.join(families)} have tasks but no adapter, and the base never learnt their skills: "
        "the unseen set."
    )


def _row(family: str, tasks: list[dict[str, Any]]) -> str:
    cells = (
        sum(task[column] for task in tasks) / len(tasks) if all(task[column] is not None for task in tasks) else None
        for column in ("base", "own_adapter", "siblings")
    )
    return " | ".join([f"| {family}", *("" if cell is None else f"{cell:.3f}" for cell in cells)]) + " |"
