"""The page that lies in a built larger testbed, written from its report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

_PAGE = """# A larger trained pool

A base model, {num_adapters} LoRA adapters and {num_asked} tasks that are asked for, trained by this project on a CPU.
Beside one adapter per skill and domain it holds what makes choosing hard:

* tasks of two skills at once, some with an adapter of their own (`two_skill`), some with none (`two_skill_new`);
* adapters of several skills (`multi_skill`) that overlap with others;
* ranks {ranks}, rank-stabilised scaling, ranks by module;
* duplicates, hardly trained adapters, and adversarial ones (`duplicate`, `poor`, `adversarial`), which have sample
  texts but are never asked for: whoever routes to them loses;
* wordings that no sample text uses (`wording: held_out`, a third of the `dev` and `test` lines).

Exact match of the `{split}` split through transformers and PEFT:

| kind | tasks | base | own adapter | adapters of the same family |
|---|---|---|---|---|
{rows}

Made with `hilora lab build-testbed --size large --out DIR --seed {seed}`: {base_steps} steps of {base_batch} prompts
for the base{start}, {adapter_steps} steps of {adapter_batch} for an adapter of one skill. The format is described in
`hilora_lab/testbed/folder.py`.
"""


def large_page(report: dict[str, Any]) -> str:
    """The page of a larger testbed, from the content of its `report.json`."""
    tasks: list[dict[str, Any]] = report["tasks"]
    kinds: dict[str, str] = report["kinds"]
    base, adapter = report["recipe"]["base"], report["recipe"]["adapter"]
    asked_kinds = dict.fromkeys(kinds[task["task"]] for task in tasks)
    rank = adapter["lora_rank"]
    return _PAGE.format(
        num_adapters=sum(kind not in {"two_skill_new", "unseen"} for kind in kinds.values()),
        num_asked=len(tasks),
        ranks=f"{max(1, rank // 2)}, {rank} and {2 * rank}",
        split=report["split"],
        rows="\n".join(_row(kind, [task for task in tasks if kinds[task["task"]] == kind]) for kind in asked_kinds),
        seed=report["recipe"]["seed"],
        start=", which began with the shipped testbed's" if report["recipe"].get("warm_start") else "",
        base_steps=base["num_steps"],
        base_batch=base["batch_size"],
        adapter_steps=adapter["num_steps"],
        adapter_batch=adapter["batch_size"],
    )


def _row(kind: str, tasks: Sequence[dict[str, Any]]) -> str:
    cells: list[str] = []
    for column in ("base", "own_adapter", "siblings"):
        known = [task[column] for task in tasks if task[column] is not None]
        cells.append(f"{fmean(known):.3f}" if known else "")
    return f"| {kind} | {len(tasks)} | {' | '.join(cells)} |"
