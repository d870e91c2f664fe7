"""The registry's values as JSON, for files and for Redis."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pydantic import TypeAdapter

from services.common.errors import error_from_dict, error_to_dict
from services.registry.artifact import ArtifactManifest, ProfileRecord
from services.registry.catalog_entry import CatalogEntry, CatalogRecord
from services.registry.job import IngestJob, IngestRequest, IngestState
from services.registry.registration import Registration
from services.registry.validation_report import report_from_json

# `validate_json` raises pydantic's ValidationError, a ValueError, for anything that is not such a record.
MANIFEST = TypeAdapter(ArtifactManifest)
REGISTRATION = TypeAdapter(Registration)
INGEST_REQUEST = TypeAdapter(IngestRequest)
CATALOG_ENTRY = TypeAdapter(CatalogEntry)
CATALOG_RECORD = TypeAdapter(CatalogRecord)
PROFILE_RECORD = TypeAdapter(ProfileRecord)
ALIASES = TypeAdapter(dict[str, str])


def job_to_json(job: IngestJob) -> str:
    """A job with its error's class, code and remedy."""
    fields: dict[str, Any] = {item.name: getattr(job, item.name) for item in dataclasses.fields(job)}
    # The details of a refusal are its report, which is kept once.
    fields["error"] = {**error_to_dict(job.error), "details": {}} if job.error else None
    fields["report"] = job.report.to_json() if job.report else None
    return json.dumps(fields)


def job_from_json(text: str) -> IngestJob:
    """What `job_to_json` wrote."""
    fields: dict[str, Any] = json.loads(text)
    error = fields.pop("error")
    state = IngestState(fields.pop("state"))
    report = fields.pop("report", None)
    return IngestJob(
        **fields,
        state=state,
        error=error_from_dict(error) if error else None,
        report=report_from_json(report) if report else None,
    )
