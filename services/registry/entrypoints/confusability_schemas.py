"""Bodies of the audit's REST answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel

from hilora.update_overlap import UpdateOverlap
from hilora.update_statistics import UpdateStatistics
from services.registry.confusability_audit import AdapterAudit, ConfusabilityPage, Rival


class ModuleOverlapView(BaseModel):
    """Two updates of one module."""

    cosine: float
    input_alignment: float
    output_alignment: float


class OverlapView(BaseModel):
    """What two adapters do, compared."""

    cosine: float
    """Of the whole updates."""
    norm_ratio: float
    modules: dict[str, ModuleOverlapView]

    @classmethod
    def of(cls, overlap: UpdateOverlap) -> Self:
        """The view of an overlap."""
        return cls(
            cosine=overlap.cosine,
            norm_ratio=overlap.norm_ratio,
            modules={
                path: ModuleOverlapView(
                    cosine=module.cosine,
                    input_alignment=module.input_alignment,
                    output_alignment=module.output_alignment,
                )
                for path, module in overlap.modules.items()
            },
        )


class RivalView(BaseModel):
    """An adapter that the audited one may be taken for."""

    name: str
    adapter_id: str
    distance: float
    error_bound: float
    same_task_ratio: float
    is_near_duplicate: bool
    overlap: OverlapView | None
    """None where it was not looked at."""

    @classmethod
    def of(cls, rival: Rival) -> Self:
        """The view of a rival."""
        return cls(
            name=rival.adapter_name,
            adapter_id=rival.adapter_id,
            distance=rival.distance,
            error_bound=rival.error_bound,
            same_task_ratio=rival.same_task_ratio,
            is_near_duplicate=rival.is_near_duplicate,
            overlap=None if rival.overlap is None else OverlapView.of(rival.overlap),
        )


class Confusability(BaseModel):
    """`GET /v1/adapters/{name}/confusability`, and one row of the audit."""

    object: Literal["adapter.confusability"] = "adapter.confusability"
    name: str
    adapter_id: str
    num_samples: int
    routed_right_at_least: float
    rivals: list[RivalView]
    advice: str
    explanation: str

    @classmethod
    def of(cls, audit: AdapterAudit) -> Self:
        """The view of one adapter's audit."""
        return cls(
            name=audit.adapter_name,
            adapter_id=audit.adapter_id,
            num_samples=audit.num_samples,
            routed_right_at_least=audit.routed_right_at_least,
            rivals=[RivalView.of(rival) for rival in audit.rivals],
            advice=audit.advice.value,
            explanation=audit.explanation,
        )


class ConfusabilityList(BaseModel):
    """`GET /v1/adapters/audit`."""

    object: Literal["list"] = "list"
    catalog_generation: int
    num_audited: int
    """Adapters of the whole pool that could be compared."""
    num_passed_over: int
    """Adapters without samples of the pool's encoder."""
    offset: int
    data: list[Confusability]
    """The adapters at most risk first."""

    @classmethod
    def of(cls, page: ConfusabilityPage, *, offset: int) -> Self:
        """The view of a page."""
        return cls(
            catalog_generation=page.catalog_generation,
            num_audited=page.num_audited,
            num_passed_over=page.num_passed_over,
            offset=offset,
            data=[Confusability.of(audit) for audit in page.adapters],
        )


class ModuleStatisticsView(BaseModel):
    """The update of one module."""

    singular_values: list[float]
    spectral_norm: float
    frobenius_norm: float
    stable_rank: float


class StatisticsView(BaseModel):
    """How large an adapter's update is, and over how many directions it spreads."""

    spectral_norm: float
    frobenius_norm: float
    stable_rank: float
    modules: dict[str, ModuleStatisticsView]

    @classmethod
    def of(cls, statistics: UpdateStatistics) -> Self:
        """The view of an adapter's statistics."""
        return cls(
            spectral_norm=statistics.spectral_norm,
            frobenius_norm=statistics.frobenius_norm,
            stable_rank=statistics.stable_rank,
            modules={
                path: ModuleStatisticsView(
                    singular_values=list(module.singular_values),
                    spectral_norm=module.spectral_norm,
                    frobenius_norm=module.frobenius_norm,
                    stable_rank=module.stable_rank,
                )
                for path, module in statistics.modules.items()
            },
        )
