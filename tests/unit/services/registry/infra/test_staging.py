"""The staging area: accepted or not there."""

from __future__ import annotations

import os

import pytest

from services.registry.infra.staging import DiskStagingArea
from tests.builders.registry_values import a_request


@pytest.fixture
def staging(tmp_path):
    return DiskStagingArea(tmp_path / "incoming")


def accepted(staging, **fields):
    request = a_request(**fields)
    (staging.create(request.job_id) / "adapter_config.json").write_text("{}")
    staging.accept(request)
    return request


class TestAcceptance:
    def test_an_accepted_request_is_found_by_the_next_process(self, staging, tmp_path):
        late, early = accepted(staging, created_at=2.0), accepted(staging, created_at=1.0)

        again = DiskStagingArea(tmp_path / "incoming")

        assert again.accepted() == [early, late]
        assert again.request(late.job_id) == late
        assert (again.files(late.job_id) / "adapter_config.json").read_text() == "{}"

    def test_those_that_are_known_are_left_out(self, staging):
        known, other = accepted(staging), accepted(staging)

        assert staging.accepted(besides={known.job_id}) == [other]

    def test_a_folder_without_acceptance_is_no_job(self, staging):
        request = a_request()
        staging.create(request.job_id)

        assert staging.request(request.job_id) is None
        assert staging.accepted() == []

    def test_what_is_discarded_is_gone_and_may_be_discarded_again(self, staging):
        request = accepted(staging)

        staging.discard(request.job_id)
        staging.discard(request.job_id)

        assert staging.accepted() == []
        assert not staging.files(request.job_id).exists()

    @pytest.mark.parametrize("job_id", ["..", "a/b", ""])
    def test_only_ids_of_ours_become_folders(self, staging, job_id):
        with pytest.raises(ValueError, match="not a job's identity"):
            staging.files(job_id)

    def test_a_damaged_request_does_not_stop_the_others(self, staging):
        good, bad = accepted(staging), accepted(staging)
        (staging.files(bad.job_id) / "request.json").write_text("{")

        assert staging.accepted() == [good]


class TestSweep:
    def test_only_old_folders_that_were_never_accepted_go(self, staging):
        old, running, waiting = a_request(), a_request(), accepted(staging)
        for request in (old, running):
            staging.create(request.job_id)
        for request in (old, waiting):
            os.utime(staging.files(request.job_id), (0, 0))

        staging.sweep()

        assert not staging.files(old.job_id).exists()
        assert staging.files(running.job_id).exists()
        assert staging.accepted() == [waiting]
