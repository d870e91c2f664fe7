"""The steps of the registry that last, by name: where a process can be when it dies."""

from __future__ import annotations

from dataclasses import dataclass

from tests.builders.crash_trap import Moment


@dataclass(frozen=True, slots=True)
class Place:
    """One step."""

    what: str
    operation: str
    """See `crash_trap`."""


UPLOAD_FOLDER = Place("the folder of the upload is made", r"mkdir .*/incoming/\w+$")
REQUEST_WRITTEN = Place("the request is flushed", r"fsync .*/incoming/\w+/\.request\.json$")
REQUEST_ACCEPTED = Place("the request gets its name", r"rename .*/incoming/\w+/request\.json$")
REQUEST_GONE = Place("the upload is set aside", r"rename .*/incoming/\.done-\w+$")
STAGING_GONE = Place("the files are removed", r"rmtree .*/incoming/\.done-\w+$")
SUBMISSION = Place("the job is recorded", r"redis EVAL .*hilora:jobs:submission")
MESSAGE = Place("the job is queued", r"redis LPUSH hilora:celery:registry-ingest")
CLAIM = Place("the job is claimed", r"redis SET hilora:jobs:lease")
ARTIFACT_BEGUN = Place("the artifact is begun", r"mkdir .*/artifacts/\.writing-\w+$")
ARTIFACT_FILE = Place("a file of the artifact is flushed", r"fsync .*/artifacts/\.writing-\w+/\w+\.")
ARTIFACT = Place("the artifact gets its name", r"rename .*/artifacts/[0-9a-f]{64}$")
PROFILE_FILE = Place("a file of the profile is flushed", r"fsync .*/profiles/\.writing-\w+/\w+\.")
PROFILE = Place("the profile gets its name", r"rename .*/profiles/[0-9a-f]{64}/[0-9a-f]{64}$")
CATALOG_LOCK = Place("the right to publish is taken", r"redis SET hilora:catalog:lock")
RECORD_WRITTEN = Place("the name's record is flushed", r"fsync .*/adapters/\.[^/]+\.tmp$")
RECORD = Place("the name's record is replaced", r"rename .*/adapters/[^./][^/]*\.json$")
ALIASES = Place("the catalogue's record is replaced", r"rename .*/adapters/\.catalog\.json$")
COMMIT = Place("the change is published", r"redis EVAL .*xadd.*hilora:catalog:lock")
REBUILD = Place("the catalogue is rebuilt", r"redis EVAL (?!.*xadd).*hilora:catalog:lock hilora:catalog:generation")
ARTIFACT_ASIDE = Place("the artifact is set aside", r"rename .*/artifacts/\.aside/[0-9a-f]{64}$")
PROFILE_ASIDE = Place("the profile is set aside", r"rename .*/profiles/\.aside/[0-9a-f]{64}\+[0-9a-f]{64}$")
ARTIFACT_PURGED = Place("the artifact is deleted", r"rmtree .*/artifacts/\.aside/[0-9a-f]{64}$")
PROFILE_PURGED = Place("the profile is deleted", r"rmtree .*/profiles/\.aside/[0-9a-f]{64}\+[0-9a-f]{64}$")
FILE_PURGED = Place("one of its files is deleted", r"unlink (?!/)\S+$")
STORE_LOCK = Place("the right to prepare the store is taken", r"redis SET hilora:store:lock")

ACKNOWLEDGEMENT = Place("the message is acknowledged", r"redis pipeline ZREM \S*unacked_index")


def state(name: str) -> Place:
    """A job's state is noted."""
    return Place(f"{name} is noted", rf'redis EVAL .*hilora:jobs:outcomes.*"state": "{name}"')


def before(place: Place, nth: int = 1, *, since: Place | None = None) -> Moment:
    """The moment at which all but the step is done; of several such steps, the `nth` after another one."""
    return Moment(
        what=_called("before", place, nth),
        operation=place.operation,
        is_before=True,
        nth=nth,
        since=since.operation if since else "",
    )


def after(place: Place, nth: int = 1) -> Moment:
    """The moment at which nothing but the step is done."""
    return Moment(what=_called("after", place, nth), operation=place.operation, is_before=False, nth=nth)


def _called(side: str, place: Place, nth: int) -> str:
    return f"{side} {place.what}" + (f" ({nth})" if nth > 1 else "")
