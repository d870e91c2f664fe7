"""The crash matrix as a table: what was going on, who died where, and what must have become of it.

The order matters for speed alone: rows that hold new versions back follow one another, so that the ingest process is
restarted once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.builders.crash_places import (
    ACKNOWLEDGEMENT,
    ALIASES,
    ARTIFACT,
    ARTIFACT_BEGUN,
    ARTIFACT_FILE,
    CATALOG_LOCK,
    CLAIM,
    COMMIT,
    MESSAGE,
    PROFILE,
    PROFILE_FILE,
    REBUILD,
    RECORD,
    RECORD_WRITTEN,
    REQUEST_ACCEPTED,
    REQUEST_GONE,
    REQUEST_WRITTEN,
    STAGING_GONE,
    STORE_LOCK,
    SUBMISSION,
    UPLOAD_FOLDER,
    after,
    before,
    state,
)
from tests.builders.crash_trap import Moment

EVERYTHING = ("registry", "ingest", "redis")
WORKING = ("FETCHING", "VALIDATING", "DECOMPOSING", "PROFILING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """One sudden death, of one process or of several."""

    at: Moment
    of: str
    """The process whose step it is."""
    kills: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One scenario."""

    change: str
    """A key of `CHANGES`."""
    falls: tuple[Fall, ...]
    """One after the other; each later one comes while the system recovers from the one before it. None where the change
    itself brings the registry down."""
    is_made: bool
    """Whether the change is made in the end, without anybody asking again."""
    loses_redis: bool = False
    """Whether Redis comes back empty."""
    admission: str = "open"

    def __str__(self) -> str:
        falls = ", then ".join(f"{'+'.join(fall.kills)} {fall.at.what}" for fall in self.falls) or "registry"
        return f"{self.change}: {falls}{', Redis emptied' if self.loses_redis else ''}"


def registry(at: Moment, *kills: str) -> Fall:
    """Death at a step of the registry; its own by default."""
    return Fall(at=at, of="registry", kills=kills or ("registry",))


def ingest(at: Moment, *kills: str) -> Fall:
    """Death at a step of the ingest process; its own by default."""
    return Fall(at=at, of="ingest", kills=kills or ("ingest",))


def made(change: str, *falls: Fall, loses_redis: bool = False, admission: str = "open") -> Row:
    """A row after which the change is made."""
    return Row(change=change, falls=falls, is_made=True, loses_redis=loses_redis, admission=admission)


def not_begun(change: str, *falls: Fall, admission: str = "open") -> Row:
    """A row after which everything is as before the change."""
    return Row(change=change, falls=falls, is_made=False, admission=admission)


# Messages that came twice are acknowledged at any time, too.
_ACKNOWLEDGING = before(ACKNOWLEDGEMENT, since=state("READY"))

_RECEIVING = (
    not_begun("upload in pieces"),
    not_begun("upload", registry(after(UPLOAD_FOLDER))),
    not_begun("upload", registry(before(REQUEST_WRITTEN))),
    not_begun("upload", registry(before(REQUEST_ACCEPTED))),
    made("upload", registry(after(REQUEST_ACCEPTED))),
    made("upload", registry(after(SUBMISSION))),
    made("upload", registry(after(MESSAGE))),
)

_INGESTING = (
    made("upload", ingest(after(CLAIM))),
    *(made("upload", ingest(before(state(name)))) for name in WORKING[1:]),
    *(made("upload", ingest(after(state(name)))) for name in WORKING),
    made("upload", ingest(after(ARTIFACT_BEGUN))),
    made("upload", ingest(before(ARTIFACT_FILE, 3))),
    made("upload", ingest(before(ARTIFACT))),
    made("upload", ingest(after(ARTIFACT))),
    made("upload", ingest(before(PROFILE_FILE, 2))),
    made("upload", ingest(before(PROFILE))),
    made("upload", ingest(after(PROFILE))),
    made("upload", ingest(after(CATALOG_LOCK))),
    made("upload", ingest(before(RECORD_WRITTEN))),
    made("upload", ingest(before(RECORD))),
    made("upload", ingest(after(RECORD))),
    made("upload", ingest(after(COMMIT))),
    made("upload", ingest(before(REQUEST_GONE))),
    made("upload", ingest(after(REQUEST_GONE))),
    made("upload", ingest(after(STAGING_GONE))),
    made("upload", ingest(after(state("READY")))),
    made("upload", ingest(_ACKNOWLEDGING)),
)

_UPDATING = (
    *(
        made("replacement", ingest(at))
        for at in (before(ARTIFACT), before(RECORD), after(RECORD), after(COMMIT), after(STAGING_GONE))
    ),
    *(made("upload again", ingest(at)) for at in (before(RECORD), after(RECORD))),
    *(
        made("samples", ingest(at))
        for at in (before(PROFILE), after(PROFILE), before(RECORD), after(RECORD), after(COMMIT))
    ),
    *(
        row
        for change in ("rollback", "retirement", "access")
        for row in (not_begun(change, registry(before(RECORD))), made(change, registry(after(RECORD))))
    ),
    *(made(change, registry(after(COMMIT))) for change in ("rollback", "retirement")),
    *(
        row
        for change in ("alias", "end of an alias")
        for row in (not_begun(change, registry(before(ALIASES))), made(change, registry(after(ALIASES))))
    ),
)

_HOLDING = (
    *(
        made("upload to quarantine", ingest(at), admission="quarantine-first")
        for at in (before(RECORD), after(RECORD), after(STAGING_GONE), after(state("QUARANTINED")))
    ),
    *(
        row
        for change in ("approval", "rejection")
        for row in (
            not_begun(change, registry(before(RECORD)), admission="quarantine-first"),
            made(change, registry(after(RECORD)), admission="quarantine-first"),
        )
    ),
)

_WITHOUT_REDIS = (
    not_begun("upload", registry(before(SUBMISSION), "redis")),
    made("upload", registry(after(MESSAGE), "redis")),
    *(made("upload", ingest(after(state(name)), "redis")) for name in WORKING),
    *(made("upload", ingest(at, "redis")) for at in (before(COMMIT), after(COMMIT), after(STAGING_GONE))),
    made("upload", ingest(_ACKNOWLEDGING, "redis")),
    made("replacement", ingest(before(COMMIT), "redis")),
    made("retirement", registry(before(COMMIT), "redis")),
    *(
        made("upload", ingest(at, "redis"), loses_redis=True)
        for at in (after(state("FETCHING")), after(state("PROFILING")), before(COMMIT), after(COMMIT))
    ),
    made("upload", registry(before(MESSAGE), "redis"), loses_redis=True),
    made("rollback", registry(before(COMMIT), "redis"), loses_redis=True),
)

_TOGETHER = (
    *(
        made("upload", ingest(at, "registry", "ingest"))
        for at in (after(state("DECOMPOSING")), before(COMMIT), after(STAGING_GONE))
    ),
    *(
        made("upload", ingest(at, *EVERYTHING), loses_redis=loses_redis)
        for at in (after(state("PROFILING")), after(RECORD), after(STAGING_GONE))
        for loses_redis in (False, True)
    ),
)

_RECOVERING = (
    made("upload", ingest(after(STAGING_GONE), "registry", "ingest"), registry(before(state("READY")))),
    made("upload", ingest(after(state("PROFILING")), "registry", "ingest"), registry(before(state("PENDING")))),
    made("upload", ingest(after(state("PROFILING")), "registry", "ingest"), registry(before(MESSAGE))),
    made("upload", registry(after(REQUEST_ACCEPTED)), registry(before(state("PENDING")))),
    made("upload", registry(after(REQUEST_ACCEPTED)), registry(after(STORE_LOCK))),
    made("upload", ingest(before(ARTIFACT)), ingest(before(ARTIFACT)), ingest(after(RECORD))),
    made("rollback", registry(after(RECORD)), registry(before(REBUILD))),
    made("retirement", registry(after(RECORD)), registry(after(REBUILD))),
    made("upload", ingest(after(RECORD), *EVERYTHING), registry(before(REBUILD)), loses_redis=True),
    made("samples", ingest(after(RECORD), *EVERYTHING), registry(after(REBUILD)), loses_redis=True),
)

MATRIX: tuple[Row, ...] = (
    *_RECEIVING,
    *_INGESTING,
    *_UPDATING,
    *_HOLDING,
    *_WITHOUT_REDIS,
    *_TOGETHER,
    *_RECOVERING,
)
