"""Everything that was found about one adapter, in one value.

An adapter with an error is refused: by one error of the tree, that of the first finding, which carries the whole report
in its details. An adapter without one keeps its report beside its components (`validation.json`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from hilora.errors import InvalidAdapter
from hilora.finding import Finding, RefusalLog, Severity

REPORT_KEY = "report"
"""Where an error's details hold the report."""

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """The findings about one adapter, errors first."""

    findings: tuple[Finding, ...] = ()
    num_omitted: int = 0
    """Errors beyond those that are listed."""

    @property
    def is_accepted(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def adding(self, findings: Iterable[Finding]) -> ValidationReport:
        """The report with more findings."""
        ordered = sorted((*self.findings, *findings), key=lambda finding: _ORDER[finding.severity])
        return replace(self, findings=tuple(ordered))

    def to_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return {"findings": [asdict(finding) for finding in self.findings], "num_omitted": self.num_omitted}


def report_of(log: RefusalLog, notes: Iterable[Finding]) -> ValidationReport:
    """The report of a check.

    Args:
        log: the reasons for a refusal.
        notes: what else was found.
    """
    errors = [Finding.of(error) for error in log.errors]
    return ValidationReport(num_omitted=log.num_omitted).adding([*errors, *notes])


def refusal_of(log: RefusalLog, report: ValidationReport) -> InvalidAdapter:
    """The error that a refused adapter answers with: the first one, carrying them all.

    Args:
        log: with at least one error.
        report: made of it.
    """
    return log.errors[0].with_details({REPORT_KEY: report.to_json()})


def report_from_json(fields: Mapping[str, object]) -> ValidationReport:
    """What `to_json` wrote. Raises ValueError for anything else."""
    try:
        listed = cast("list[dict[str, Any]]", fields["findings"])
        findings = tuple(Finding(**{**item, "severity": Severity(item["severity"])}) for item in listed)
        return ValidationReport(findings=findings, num_omitted=int(cast("int", fields["num_omitted"])))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a validation report: {error}") from error
