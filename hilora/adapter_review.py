"""What is worth saying about an adapter that can be served, before it is.

None of it is a reason to refuse: the functions here give findings of severity warning or info, or none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hilora.adapter import LoRAAdapter
from hilora.finding import Finding, Severity

MIN_POOL_FOR_OUTLIERS = 8
"""With fewer adapters a spread says nothing."""
OUTLIER_Z = 6.0
NORM_OUTLIER = "norm_outlier"
"""Code of the finding."""
_MAD_TO_SIGMA = 1.4826
_MIN_SIGMA = 0.25
"""Of log norms. Adapters of one training script are alike; one a little stronger than its siblings is no outlier."""

FEW_SAMPLES = 5
_UNEVEN_FACTOR = 4.0
_MAX_NAMES = 5
_QUANTISED = re.compile(r"(?:-(?:unsloth|bnb|4bit|8bit|gptq|awq|int4|int8|fp8|nf4|hf|quantized|dynamic))+$")


def describe_scaling(adapter: LoRAAdapter) -> Finding:
    """Which factors of `B A` were read out of the config."""
    counts: dict[float, int] = {}
    for factors in adapter.modules.values():
        counts[factors.scaling] = counts.get(factors.scaling, 0) + 1
    most_used = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{scaling:g} in {count} modules" for scaling, count in most_used[:_MAX_NAMES])
    rest = f" and {len(most_used) - _MAX_NAMES} more values" if len(most_used) > _MAX_NAMES else ""
    return Finding(
        code="scaling_used",
        severity=Severity.INFO,
        place="lora_alpha",
        message=f"The factor of the updates is {listed}{rest}.",
        remedy="",
    )


def find_dead_components(adapter: LoRAAdapter) -> Finding | None:
    """Rank-one components that add nothing because one of their halves is zero."""
    dead: dict[str, int] = {}
    num_components = 0
    for path, factors in adapter.modules.items():
        alive = (factors.lora_a != 0).any(dim=1) & (factors.lora_b != 0).any(dim=0)
        num_components += factors.lora_rank
        if not bool(alive.all()):
            dead[path] = int((~alive).sum())
    if not dead:
        return None
    return Finding(
        code="dead_components",
        severity=Severity.WARNING,
        place=next(iter(dead))[:120],
        message=f"{sum(dead.values())} of {num_components} rank-one components are zero, in {_named(dead)}: they take "
        "memory and a place in every budget.",
        remedy='Register it again with squeeze={"energy": 1.0}, which drops them, or train it longer.',
    )


def find_tied_modules(adapter: LoRAAdapter, tied_modules: Collection[str]) -> Finding | None:
    """Modules whose weight the base shares with another module.

    Args:
        adapter: with module paths of the base.
        tied_modules: paths of all modules that share their weight.
    """
    targeted = [path for path in adapter.modules if path in tied_modules]
    if not targeted:
        return None
    return Finding(
        code="tied_weights",
        severity=Severity.WARNING,
        place=targeted[0],
        message=f"The base uses one weight for {' and '.join(sorted(tied_modules))}, and the adapter changes "
        f"{_named(targeted)} alone.",
        remedy="Nothing, if it was trained that way by PEFT; merged into its base it would change both.",
    )


def compare_base_names(declared: str | None, served: str) -> Finding | None:
    """Whether the base that an adapter names is another one than that it is to be served on.

    Owner, case, and what marks a quantised or converted copy do not count.
    """
    if not declared or _plain_name(declared) == _plain_name(served):
        return None
    return Finding(
        code="base_name_mismatch",
        severity=Severity.WARNING,
        place="base_model_name_or_path",
        message=f"The adapter says that it was trained on {declared[:120]!r}; served is {served!r}. Every shape fits.",
        remedy="Make sure that both are the same weights: an adapter of another base degrades answers silently.",
    )


def find_few_samples(num_samples: int) -> Finding | None:
    """Whether an adapter comes with too few sample texts to be recognised by."""
    if num_samples >= FEW_SAMPLES:
        return None
    if num_samples == 0:
        return Finding(
            code="no_samples",
            severity=Severity.WARNING,
            place="samples",
            message="The adapter comes without sample texts, so nothing says yet which requests are meant for it.",
            remedy="It can be named at once, and is routed to when a profile was made of its card or of what it says "
            "itself. Send about 20 prompts of its task: no other source comes near them.",
        )
    return Finding(
        code="few_samples",
        severity=Severity.WARNING,
        place="samples",
        message=f"{num_samples} sample texts describe the adapter's task.",
        remedy="Send about 20: with fewer, requests for it are taken for another adapter's more often.",
    )


def are_uneven(sample_counts: Sequence[int]) -> bool:
    """Whether adapters of a pool have so unequal numbers of samples that those with more may be preferred: beyond
    what the empirical-Bayes means repair."""
    return len(sample_counts) > 0 and max(sample_counts) > _UNEVEN_FACTOR * max(min(sample_counts), 1)


def find_norm_outliers(norm_by_kind: Mapping[str, float], pool: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Kinds of modules whose updates are far larger or smaller than those of the pool.

    The distance is a robust z of the logarithm: from the pool's median, in units of its median absolute deviation.

    Args:
        norm_by_kind: `AdapterTraits.norm_by_kind` of the adapter.
        pool: the same of every other adapter.
    """
    findings: list[Finding] = []
    for kind, norm in norm_by_kind.items():
        logs = np.log([norms[kind] for norms in pool if norms.get(kind, 0.0) > 0.0])
        if norm <= 0.0 or len(logs) < MIN_POOL_FOR_OUTLIERS:
            continue
        median = float(np.median(logs))
        sigma = max(_MIN_SIGMA, _MAD_TO_SIGMA * float(np.median(np.abs(logs - median))))
        z = (float(np.log(norm)) - median) / sigma
        if abs(z) > OUTLIER_Z:
            findings.append(_outlier(kind, norm, typical=float(np.exp(median)), z=z))
    return findings


def _outlier(kind: str, norm: float, *, typical: float, z: float) -> Finding:
    direction = "larger" if z > 0 else "smaller"
    factor = norm / typical if z > 0 else typical / norm
    return Finding(
        code=NORM_OUTLIER,
        severity=Severity.WARNING,
        place=kind,
        message=f"The updates of {kind} have a norm of {norm:.3g}, {factor:.3g} times {direction} than is usual in "
        f"this pool ({typical:.3g}; robust z {z:.1f}).",
        remedy="Check lora_alpha, use_rslora and whether the training diverged: a factor is easily applied twice.",
    )


def _plain_name(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower().replace("_", "-")
    return re.sub(r"[^a-z0-9]", "", _QUANTISED.sub("", last))


def _named(paths: Collection[str]) -> str:
    shown = ", ".join(path[:120] for path in list(paths)[:_MAX_NAMES])
    return f"{shown} and {len(paths) - _MAX_NAMES} more" if len(paths) > _MAX_NAMES else shown
