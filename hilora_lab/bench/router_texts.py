"""What the router's benchmark asks: plain English of made-up tasks, as many different texts as wanted.

A task is a kind of request: the texts of one share their sentence and differ in what they ask it of. About thirty
tokens each, like a short question to an assistant.
"""

from __future__ import annotations

import random

_VERBS = ("Summarise", "Translate", "Rewrite", "Check", "Classify", "Explain", "Shorten", "Compare", "Correct", "Sort")
_KINDS = ("legal", "medical", "friendly", "formal", "technical", "historical", "musical", "financial", "rural", "naval")
_THINGS = ("letter", "contract", "recipe", "report", "poem", "ticket", "review", "speech", "invoice", "novel")
_PLACES = ("Lisbon", "Osaka", "Cairo", "Quito", "Oslo", "Dakar", "Hanoi", "Perth", "Lima", "Riga", "Tunis", "Minsk")
_SUBJECTS = ("a bridge", "the harvest", "an old clock", "my neighbour", "the election", "a lost parcel", "the weather")


def task_name(task: int) -> str:
    """The name of a task's adapter."""
    return f"task-{task}"


def task_text(task: int, number: int) -> str:
    """A text of a task; equal arguments give equal texts, and no two others do.

    Args:
        task: 0 to 999 differ in their words; beyond, only in a number.
        number: which of the task's texts.
    """
    place = task % 1000
    verb, kind, thing = _VERBS[place % 10], _KINDS[place // 10 % 10], _THINGS[place // 100]
    rng = random.Random(task * 1_000_003 + number)
    return (
        f"{verb} the following {kind} {thing} about {rng.choice(_SUBJECTS)} in {rng.choice(_PLACES)}, "
        f"and keep the tone of the original. Case {task}-{number}."
    )
