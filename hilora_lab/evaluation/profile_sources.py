"""What profiles cost or earn by the texts they are made of: sample texts, self-portraits, cards.

Every dev prompt of every task is routed, in two settings: `pool`, where all profiles are made of the source, and
`guest`, where only the task's own adapter's is, among others that came with sample texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hilora.adapter import LoRAAdapter, adapter_id_of
from hilora.character_grams import SampleGrams, gram_ids
from hilora.routing_settings import RoutingSettings
from hilora.self_portrait import NEUTRAL_OPENINGS, portrait_prompts, portrait_texts
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from hilora_lab.evaluation.offline import Encodes
from hilora_lab.evaluation.profile_texts import Sitter
from hilora_lab.testbed.folder import Split, TaskLine, Testbed
from hilora_lab.testbed.tasks import ANSWER_MARKER

ProfileSetting = Literal["pool", "guest"]
Texts = Mapping[str, tuple[str, ...]]
"""By adapter name."""

_NUM_RESAMPLES = 2000
_FIRST_FEW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of prompts, with a bootstrap interval of 95 % over tasks: prompts of one task are not independent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileScore:
    """What one source of profile texts scores in one setting."""

    source: str
    setting: ProfileSetting
    num_prompts: int
    mean_texts: float
    """Texts of a profile."""
    own_first: Share
    """The likeliest adapter is the task's own."""
    own_among_three: Share
    """The task's own is one of the three likeliest."""
    family_first: Share
    """The likeliest adapter is one of the right family."""


class ProfileBench:
    """A testbed whose prompts are embedded once.

    Args:
        testbed: the folder.
        encoder: what turns texts into points.
        split: which lines are routed.
        limit_per_task: at most that many of each task.
    """

    def __init__(
        self, testbed: Testbed, encoder: Encodes, *, split: Split = "dev", limit_per_task: int | None = None
    ) -> None:
        self._encoder = encoder
        self._names = testbed.adapter_names
        self._family_of = {line.task: line.family for line in testbed.lines}
        self._lines = [line for name in self._names for line in testbed.lines_of(name, split)[:limit_per_task]]
        self._asked_NE = encoder.encode([line.prompt for line in self._lines])
        self._adapters = {name: read_adapter_folder(testbed.adapter_folder(name)) for name in self._names}
        self._samples: Texts = {
            name: tuple(line.prompt for line in testbed.lines_of(name, "fit")) for name in self._names
        }
        self._testbed = testbed

    def texts_by_source(self, on_progress: Callable[[str], None] | None = None) -> dict[str, Texts]:
        """The texts of every source by its name; generates the portraits, which takes minutes."""
        found: dict[str, Texts] = {"sample texts": self._samples}
        sitter = self._sitter()
        for opening, openings in {"start token": ("",), "neutral openings": NEUTRAL_OPENINGS}.items():
            generated: dict[str, list[str]] = {}
            for name in self._names:
                prompts = portrait_prompts(openings)
                generated[name] = sitter.texts(name, self._adapters[name].lora_rank, prompts)
                if on_progress is not None:
                    on_progress(f"{opening}: {name}")
            found[f"self-portrait, {opening}, whole text"] = _kept(generated, lambda text: text)
            found[f"self-portrait, {opening}, before the answer"] = _kept(generated, _before_answer)
        found["card: words of the name"] = {name: (name.replace("-", " "),) for name in self._names}
        return found

    def score(self, source: str, texts: Texts) -> list[ProfileScore]:
        """Route every prompt in both settings."""
        profiles = {name: self._profile(name, texts[name]) for name in self._names if texts[name]}
        usual = {name: self._profile(name, self._samples[name]) for name in self._names}
        pool = SequenceRouter(list(profiles.values()), catalog_generation=0)
        hits: dict[ProfileSetting, list[NDArray[np.float64]]] = {
            "pool": [self._hits(pool, name) for name in self._names],
            "guest": [self._hits(_with_guest(usual, profiles, name), name) for name in self._names],
        }
        mean_texts = float(np.mean([len(texts[name]) for name in self._names]))
        return [_scored(source, setting, mean_texts, of_tasks) for setting, of_tasks in hits.items()]

    def _sitter(self) -> Sitter:
        tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(self._testbed.base_folder))
        model = AutoModelForCausalLM.from_pretrained(self._testbed.base_folder).eval()
        adapters: Mapping[str, LoRAAdapter] = self._adapters
        return Sitter(GatedModel(model, adapters), tokenizer, eos_token_id=cast("int", tokenizer.eos_token_id))

    def _profile(self, name: str, texts: Sequence[str]) -> AdapterProfile:
        return AdapterProfile(
            adapter_id=adapter_id_of(name, "offline"),
            adapter_name=name,
            lora_rank=self._adapters[name].lora_rank,
            samples_ME=self._encoder.encode(list(texts)),
            grams=SampleGrams.of(texts),
        )

    def _hits(self, router: SequenceRouter, task: str) -> NDArray[np.float64]:
        """`[prompts of the task, 3]`: own first, own among three, family first."""
        rows: list[tuple[bool, bool, bool]] = []
        for line, z_E in zip(self._lines, self._asked_NE, strict=True):
            if line.task == task:
                rows.append(self._hit(router, line, z_E))
        return np.array(rows, dtype=np.float64)

    def _hit(self, router: SequenceRouter, line: TaskLine, z_E: NDArray[np.float32]) -> tuple[bool, bool, bool]:
        decision = router.decide(
            z_E, settings=RoutingSettings(), num_runners_up=_FIRST_FEW, grams=gram_ids(line.prompt)
        )
        likeliest = sorted(decision.candidates, key=lambda candidate: -candidate.posterior)
        names = [candidate.adapter_name for candidate in likeliest]
        is_family = bool(names) and self._family_of[names[0]] == line.family
        return names[:1] == [line.task], line.task in names[:_FIRST_FEW], is_family


def _kept(generated: Mapping[str, Sequence[str]], part: Callable[[str], str]) -> Texts:
    return {name: portrait_texts(part(text) for text in texts) for name, texts in generated.items()}


def _before_answer(text: str) -> str:
    return text.partition(ANSWER_MARKER)[0]


def _with_guest(
    usual: Mapping[str, AdapterProfile], profiles: Mapping[str, AdapterProfile], guest: str
) -> SequenceRouter:
    """The usual pool, with the guest's other profile; without the guest, if it has none."""
    others = [profile for name, profile in usual.items() if name != guest]
    own = [profiles[guest]] if guest in profiles else []
    return SequenceRouter([*others, *own], catalog_generation=0)


def _scored(
    source: str, setting: ProfileSetting, mean_texts: float, of_tasks: Sequence[NDArray[np.float64]]
) -> ProfileScore:
    own, three, family = (_share([hits[:, column] for hits in of_tasks]) for column in range(3))
    return ProfileScore(
        source=source,
        setting=setting,
        num_prompts=sum(len(hits) for hits in of_tasks),
        mean_texts=mean_texts,
        own_first=own,
        own_among_three=three,
        family_first=family,
    )


def _share(of_tasks: Sequence[NDArray[np.float64]]) -> Share:
    sums, counts = np.array([hits.sum() for hits in of_tasks]), np.array([len(hits) for hits in of_tasks])
    drawn = np.random.default_rng(0).integers(len(of_tasks), size=(_NUM_RESAMPLES, len(of_tasks)))
    resampled = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(value=float(sums.sum() / counts.sum()), low=float(low), high=float(high))
