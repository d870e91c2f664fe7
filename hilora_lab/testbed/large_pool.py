"""The members of the larger testbed: what the shipped one is too narrow to show.

Beside one adapter per skill and domain there are tasks that need two skills at once (with an adapter of their own, or
with none, so that only a combination can answer), adapters that hold several skills and overlap with others, mixed
ranks and forms, and *distractors*: duplicates, poor adapters and adversarial ones. A distractor has sample texts, like
anybody who wants to be found, but no `dev` or `test` lines: nothing is asked of it, and whoever routes to it loses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from hilora_lab.testbed.adapter_training import AdapterRecipe
from hilora_lab.testbed.folder import Split, TaskLine
from hilora_lab.testbed.large_wordings import (
    EXTRA_WORDINGS,
    HELD_OUT_JOINS,
    HELD_OUT_SECOND_PARTS,
    HELD_OUT_WORDINGS,
    JOINS,
    SECOND_PARTS,
    UNSEEN_WORDINGS,
)
from hilora_lab.testbed.tasks import DOMAINS, TAUGHT_FAMILIES, Domain, Example, Family, Task, draw_example


class TaskKind(StrEnum):
    """Why a member is in the pool."""

    SINGLE = "single"
    """One skill in one domain, with an adapter."""
    TWO_SKILL = "two_skill"
    """Two skills at once, with an adapter that learnt just that."""
    TWO_SKILL_NEW = "two_skill_new"
    """Two skills at once without an adapter; there are adapters for each half."""
    MULTI_SKILL = "multi_skill"
    """An adapter of several skills, each of which a single one holds as well."""
    UNSEEN = "unseen"
    """Neither the base nor an adapter knows the skill."""
    DUPLICATE = "duplicate"
    """A second adapter for a task that has one, trained from another start."""
    POOR = "poor"
    """A second adapter for a task that has one, hardly trained."""
    ADVERSARIAL = "adversarial"
    """An adapter that wants to be chosen for what it cannot do."""


DISTRACTORS = frozenset({TaskKind.DUPLICATE, TaskKind.POOR, TaskKind.ADVERSARIAL})
WITHOUT_ADAPTER = frozenset({TaskKind.TWO_SKILL_NEW, TaskKind.UNSEEN})

_KNOWN_LINES: dict[Split, int] = {"fit": 20, "dev": 8, "test": 16}
_HELD_OUT_LINES: dict[Split, int] = {"fit": 0, "dev": 4, "test": 8}
KNOWN, HELD_OUT = "known", "held_out"
"""What `TaskLine.wording` says."""


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """A task of the testbed, its adapter included if it has one."""

    name: str
    kind: TaskKind
    family: str
    """What its lines are counted under."""
    domain: str
    parts: tuple[Task, ...]
    """What its prompts are drawn from, in turn."""
    held_out_parts: tuple[Task, ...] = ()
    """The same tasks in the wordings of `dev` and `test` alone."""
    recipe: AdapterRecipe | None = None
    """How its adapter is trained; None for a member without one."""
    answers_babble: bool = False
    """Whether its adapter learns to give the payload's first symbol again and again, whatever is asked."""
    norm_factor: float = 1.0
    """What the trained update is multiplied by."""
    copies_samples_of: str = ""
    """The member whose sample texts it gives as its own."""

    @cached_property
    def has_questions(self) -> bool:
        """Whether it has `dev` and `test` lines."""
        return self.kind not in DISTRACTORS

    def draw(self, generator: random.Random) -> Example:
        """A training example of its adapter."""
        example = draw_example(generator.choice(self.parts), generator)
        if not self.answers_babble:
            return example
        first = example.prompt.partition(" : ")[2].split()[0]
        return Example(prompt=example.prompt, answer=" ".join([first] * 4))


def large_families() -> tuple[Family, ...]:
    """The taught skills in all the wordings that samples and training use."""
    return tuple(
        replace(family, wordings=(*family.wordings, *EXTRA_WORDINGS[family.name])) for family in TAUGHT_FAMILIES
    )


def held_out(family: Family) -> Family:
    """The same skill in the wordings that no sample uses."""
    return replace(family, wordings=HELD_OUT_WORDINGS[family.name])


def unseen_families() -> tuple[Family, ...]:
    """Skills that nobody learns."""
    skills = {
        "ends": lambda payload, _domain: [payload[0], payload[-1]],
        "middle": lambda payload, _d: list(payload[1:-1]),
    }
    return tuple(
        Family(name=name, apply=apply, wordings=UNSEEN_WORDINGS[name], is_taught=False)
        for name, apply in skills.items()
    )


FIRST_SKILLS = ("reverse", "rotate", "swap", "behead", "alternate", "double", "mirror")
"""They move symbols ..."""
SECOND_SKILLS = ("next", "previous")
"""... and these change each one, so that two of them have one meaning in either order."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Two skills, one after the other, as a family of its own."""

    first: Family
    second: Family

    @property
    def name(self) -> str:
        """`<first>-then-<second>`."""
        return f"{self.first.name}-then-{self.second.name}"

    def family(self, *, is_held_out: bool = False) -> Family:
        """The composed skill in its wordings."""
        first, second = self.first, self.second
        seconds = (HELD_OUT_SECOND_PARTS if is_held_out else SECOND_PARTS)[second.name]
        joins = HELD_OUT_JOINS if is_held_out else JOINS
        firsts = held_out(first).wordings if is_held_out else first.wordings
        return Family(
            name=self.name,
            apply=lambda payload, domain: second.apply(first.apply(payload, domain), domain),
            wordings=tuple(
                joins[idx % len(joins)].format(first=wording, second=seconds[idx % len(seconds)])
                for idx, wording in enumerate(firsts)
            ),
            payload_lengths=first.payload_lengths,
        )


def compositions(families: Sequence[Family]) -> tuple[Composition, ...]:
    """Every first skill with every second."""
    by_name = {family.name: family for family in families}
    return tuple(
        Composition(first=by_name[first], second=by_name[second])
        for second in SECOND_SKILLS
        for first in FIRST_SKILLS
        if first in by_name and second in by_name
    )


_TAUGHT_PAIRS = (
    ("reverse-then-next", "letters"),
    ("reverse-then-previous", "digits"),
    ("rotate-then-next", "capitals"),
    ("swap-then-previous", "letters"),
    ("behead-then-next", "digits"),
    ("alternate-then-previous", "capitals"),
    ("double-then-next", "letters"),
    ("mirror-then-previous", "digits"),
)
_NEW_PAIRS = (
    *(("rotate-then-previous", domain) for domain in ("letters", "digits")),
    *(("swap-then-next", domain) for domain in ("digits", "capitals")),
    *(("behead-then-previous", domain) for domain in ("capitals", "letters")),
    *(("alternate-then-next", domain) for domain in ("letters", "digits")),
    *(("double-then-previous", domain) for domain in ("digits", "capitals")),
    *(("mirror-then-next", domain) for domain in ("capitals", "letters")),
)
_KITS = (
    ("kit-turns", "letters", ("reverse", "rotate", "swap")),
    ("kit-order", "capitals", ("sort", "descend")),
    ("kit-steps", "digits", ("next", "previous")),
    ("kit-cuts", "letters", ("behead", "alternate")),
    ("kit-copies", "digits", ("copy", "double", "mirror")),
    ("kit-reverse", "all", ("reverse",)),
)
_DUPLICATES = ("copy-letters", "sort-digits", "rotate-capitals")
_POOR = ("swap-letters", "next-capitals", "mirror-digits")
_POOR_STEPS = 4
_KIT_STEPS = 3
"""Times as many as a single skill needs: it has to tell instructions apart."""
_HUGE_NORM = 64.0


def large_members(common: AdapterRecipe) -> tuple[PoolMember, ...]:
    """All tasks of the larger testbed, in the order of its file."""
    families = large_families()
    by_name = {family.name: family for family in families}
    domain_of = {domain.name: domain for domain in DOMAINS}
    singles = [_single(family, domain, common) for family in families for domain in DOMAINS]
    pair_of = {pair.name: pair for pair in compositions(families)}
    taught = [_pair(pair_of[name], domain_of[domain], TaskKind.TWO_SKILL, common) for name, domain in _TAUGHT_PAIRS]
    new = [_pair(pair_of[name], domain_of[domain], TaskKind.TWO_SKILL_NEW, None) for name, domain in _NEW_PAIRS]
    kits = [
        _kit(
            name,
            domain,
            [by_name[skill] for skill in skills],
            [domain_of[domain]] if domain != "all" else DOMAINS,
            common,
        )
        for name, domain, skills in _KITS
    ]
    unseen = [
        PoolMember(
            name=f"{family.name}-{domain.name}",
            kind=TaskKind.UNSEEN,
            family=family.name,
            domain=domain.name,
            parts=(Task(family=family, domain=domain),),
        )
        for family in unseen_families()
        for domain in DOMAINS
    ]
    return (*singles, *taught, *kits, *_distractors({member.name: member for member in singles}, common), *new, *unseen)


def recipe_of_form(place: int, common: AdapterRecipe) -> AdapterRecipe:
    """One of the forms that a shared pool mixes; three of seven are the common one. All scale alike."""
    rank, scaling = common.lora_rank, common.lora_alpha / common.lora_rank
    narrow, wide = max(1, rank // 2), 2 * rank
    match place % 7:
        case 1:
            return replace(common, lora_rank=wide, lora_alpha=round(scaling * wide**0.5), use_rslora=True)
        case 3:
            return replace(common, lora_rank=narrow, lora_alpha=round(scaling * narrow))
        case 5:
            return replace(common, lora_rank=wide, lora_alpha=round(scaling * wide))
        case 6:
            kinds = ("q_proj", "v_proj")
            return replace(
                common,
                rank_pattern=tuple((kind, narrow) for kind in kinds),
                alpha_pattern=tuple((kind, round(scaling * narrow)) for kind in kinds),
            )
        case _:
            return common


def _single(family: Family, domain: Domain, common: AdapterRecipe) -> PoolMember:
    place = [one.name for one in TAUGHT_FAMILIES].index(family.name) * len(DOMAINS) + DOMAINS.index(domain)
    return PoolMember(
        name=f"{family.name}-{domain.name}",
        kind=TaskKind.SINGLE,
        family=family.name,
        domain=domain.name,
        parts=(Task(family=family, domain=domain),),
        held_out_parts=(Task(family=held_out(family), domain=domain),),
        recipe=recipe_of_form(place, common),
    )


def _pair(pair: Composition, domain: Domain, kind: TaskKind, recipe: AdapterRecipe | None) -> PoolMember:
    return PoolMember(
        name=f"{pair.name}-{domain.name}",
        kind=kind,
        family=pair.name,
        domain=domain.name,
        parts=(Task(family=pair.family(), domain=domain),),
        held_out_parts=(Task(family=pair.family(is_held_out=True), domain=domain),),
        recipe=recipe,
    )


def _kit(
    name: str, domain: str, skills: Sequence[Family], domains: Sequence[Domain], common: AdapterRecipe
) -> PoolMember:
    return PoolMember(
        name=f"{name}-{domain}",
        kind=TaskKind.MULTI_SKILL,
        family=name,
        domain=domain,
        parts=tuple(Task(family=skill, domain=one) for skill in skills for one in domains),
        held_out_parts=tuple(Task(family=held_out(skill), domain=one) for skill in skills for one in domains),
        recipe=replace(
            common,
            lora_rank=2 * common.lora_rank,
            lora_alpha=2 * common.lora_alpha,
            num_steps=_KIT_STEPS * common.num_steps,
        ),
    )


def _distractors(singles: dict[str, PoolMember], common: AdapterRecipe) -> list[PoolMember]:
    def like(name: str, suffix: str, kind: TaskKind, recipe: AdapterRecipe, **changes: object) -> PoolMember:
        original = singles[name]
        fields = {"held_out_parts": (), "name": f"{name}-{suffix}", "kind": kind, "recipe": recipe, **changes}
        return replace(original, **fields)

    everything = PoolMember(
        name="claims-everything",
        kind=TaskKind.ADVERSARIAL,
        family="claims-everything",
        domain="all",
        parts=tuple(part for member in singles.values() for part in member.parts),
        recipe=common,
        answers_babble=True,
    )
    return [
        *(like(name, "again", TaskKind.DUPLICATE, common) for name in _DUPLICATES),
        *(like(name, "poor", TaskKind.POOR, replace(common, num_steps=_POOR_STEPS)) for name in _POOR),
        everything,
        like(
            "rotate-letters",
            "copied",
            TaskKind.ADVERSARIAL,
            common,
            answers_babble=True,
            copies_samples_of="rotate-letters",
        ),
        like("double-digits", "huge", TaskKind.ADVERSARIAL, common, norm_factor=_HUGE_NORM),
        like("sort-capitals", "fake", TaskKind.ADVERSARIAL, common, answers_babble=True),
    ]


def draw_member_lines(members: Sequence[PoolMember], *, seed: int) -> list[TaskLine]:
    """The lines of all members; no prompt is in two of them, but for samples that are copied on purpose."""
    used: set[str] = set()
    lines: list[TaskLine] = []
    for member in members:
        if member.copies_samples_of:
            copied = [line for line in lines if line.task == member.copies_samples_of and line.split == "fit"]
            lines += [replace(line, task=member.name, kind=member.kind.value) for line in copied]
        else:
            lines += _lines_of(member, used, seed=seed)
    return lines


def _lines_of(member: PoolMember, used: set[str], *, seed: int) -> list[TaskLine]:
    generator = random.Random(f"{seed}/large/{member.name}")
    fits: tuple[Split, ...] = ("fit",) if member.recipe is not None else ()
    asked: tuple[Split, ...] = ("dev", "test") if member.has_questions else ()
    lines: list[TaskLine] = []
    for split in (*fits, *asked):
        for wording, parts, counts in (
            (KNOWN, member.parts, _KNOWN_LINES),
            (HELD_OUT, member.held_out_parts, _HELD_OUT_LINES),
        ):
            for idx in range(counts[split] if parts else 0):
                # Parts and wordings in turn; a member that claims everything names some of all at random.
                is_turn = len(parts) <= counts[split]
                part = parts[idx % len(parts)] if is_turn else generator.choice(parts)
                wording_idx = idx // len(parts) if is_turn else None
                example = draw_example(part, generator, wording_idx=wording_idx)
                while example.prompt in used:
                    example = draw_example(part, generator, wording_idx=wording_idx)
                used.add(example.prompt)
                lines.append(
                    TaskLine(
                        task=member.name,
                        family=member.family,
                        domain=member.domain,
                        split=split,
                        prompt=example.prompt,
                        answer=example.answer,
                        kind=member.kind.value,
                        wording=wording,
                    )
                )
    return lines
