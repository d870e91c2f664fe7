"""The state machine of an ingest."""

from __future__ import annotations

import itertools

import pytest

from hilora.errors import InvalidAdapter
from hilora.finding import Finding, Severity
from services.registry.infra.records import job_from_json, job_to_json
from services.registry.job import (
    IngestRequest,
    IngestState,
    SourceKind,
    is_job_id,
    new_job_id,
    pending_job,
)
from services.registry.validation_report import ValidationReport

WORK = [IngestState.PENDING, IngestState.FETCHING, IngestState.VALIDATING, IngestState.DECOMPOSING]
WORK += [IngestState.PROFILING, IngestState.READY]


def a_job():
    request = IngestRequest(
        job_id=new_job_id(),
        adapter_name="sorter",
        source_kind=SourceKind.UPLOAD,
        source="a.zip",
        is_replacement=False,
        has_own_samples=True,
        created_at=1.0,
    )
    return pending_job(request, due_at=2.0)


def at(state):
    job = a_job()
    for step in WORK[1:]:
        if job.state is state:
            break
        job = job.moved(step, detail="")
    assert job.state is state
    return job


class TestTransitions:
    def test_progress_only_grows(self):
        shares = [at(state).progress for state in WORK]

        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert all(earlier < later for earlier, later in itertools.pairwise(shares))

    @pytest.mark.parametrize("state", WORK[:-1])
    def test_work_can_fail_or_start_over_anywhere(self, state):
        assert at(state).requeued(detail="again", due_at=3.0).state is IngestState.PENDING
        failed = at(state).failed(InvalidAdapter("no"))
        assert (failed.state, failed.error.code) == (IngestState.FAILED, "invalid_adapter")
        assert at(state).cancelled().state is IngestState.CANCELLED

    def test_a_new_attempt_does_not_show_what_the_one_before_found(self):
        finding = Finding(code="few_samples", severity=Severity.INFO, place="samples", message="few", remedy="")
        job = at(IngestState.PROFILING).checked(ValidationReport(findings=(finding,)))

        assert job.requeued(detail="again", due_at=3.0).report is None

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (IngestState.PENDING, IngestState.PROFILING),
            (IngestState.VALIDATING, IngestState.READY),
            (IngestState.READY, IngestState.FAILED),
            (IngestState.READY, IngestState.CANCELLED),
            (IngestState.READY, IngestState.PENDING),
        ],
    )
    def test_no_step_is_skipped_and_no_end_undone(self, start, end):
        with pytest.raises(ValueError, match="cannot go"):
            at(start).moved(end, detail="")

    @pytest.mark.parametrize("state", WORK[1:-1])
    def test_progress_within_a_state_stays_within_it_and_never_goes_back(self, state):
        job, following = at(state), at(WORK[WORK.index(state) + 1])

        half = job.within(0.5, detail="halfway")

        assert job.progress < half.progress < half.within(1.0, detail="").progress <= following.progress
        assert half.within(0.1, detail="").progress == half.progress
        assert half.within(7.0, detail="").progress <= following.progress

    def test_terminal_states_are_those_without_work(self):
        assert [state for state in IngestState if not state.is_terminal] == WORK[:-1]


class TestRecords:
    def test_a_job_survives_json_with_its_error(self):
        job = at(IngestState.VALIDATING).failed(InvalidAdapter("no", code="c", remedy="r", place="p"))

        read = job_from_json(job_to_json(job))

        assert read == job
        assert type(read.error) is InvalidAdapter
        assert (read.error.code, read.error.remedy, read.error.place) == ("c", "r", "p")

    @pytest.mark.parametrize("text", ["", "x" * 32, "../" + "a" * 29, "A" * 32, "a" * 33])
    def test_only_our_own_ids_are_ids(self, text):
        assert not is_job_id(text)
        assert is_job_id(new_job_id())
