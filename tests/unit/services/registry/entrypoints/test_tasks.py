"""The Celery task: what is tried again, how often, and in which format messages travel."""

from __future__ import annotations

import pytest

from hilora.errors import InvalidAdapter, NoWorkerAvailable, QueueFull, RegistryUnavailable
from services.registry.entrypoints.tasks import (
    INGEST_TASK,
    MAX_RETRIES,
    backoff_seconds,
    build_celery_app,
    register_ingest_task,
)


class Runner:
    """Raises what it is told to, one after the other; then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.runs = []
        self.given_up = []

    def run(self, job_id):
        self.runs.append(job_id)
        if self.errors:
            raise self.errors.pop(0)

    def give_up(self, job_id, error):
        self.given_up.append((job_id, error.code))


@pytest.fixture
def perform():
    def perform(runner):
        app = build_celery_app("memory://", visibility_seconds=30)
        register_ingest_task(app, runner)
        return app.tasks[INGEST_TASK].apply(args=("a" * 32,))

    return perform


class TestRetries:
    @pytest.mark.parametrize(
        "error", [QueueFull("full"), RegistryUnavailable("away"), NoWorkerAvailable("none")], ids=lambda e: e.code
    )
    def test_what_may_pass_is_tried_again(self, perform, error):
        runner = Runner(error, error)

        perform(runner)

        assert len(runner.runs) == 3
        assert runner.given_up == []

    @pytest.mark.parametrize("error", [InvalidAdapter("no"), ValueError("bug")], ids=["refusal", "bug"])
    def test_what_stays_wrong_is_not(self, perform, error):
        runner = Runner(error)

        result = perform(runner)

        assert len(runner.runs) == 1
        assert result.failed()

    def test_it_ends_some_time_and_says_why(self, perform):
        runner = Runner(*[RegistryUnavailable("away", code="redis_unavailable")] * 100)

        perform(runner)

        assert len(runner.runs) == MAX_RETRIES + 1
        assert runner.given_up == [("a" * 32, "redis_unavailable")]


class TestBackoff:
    def test_it_doubles_up_to_a_bound(self):
        waits = [backoff_seconds(RegistryUnavailable(""), attempt=n, visibility_seconds=300) for n in range(9)]

        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    def test_it_waits_as_long_as_it_is_asked_to(self):
        assert backoff_seconds(QueueFull("", retry_after_seconds=20), attempt=0, visibility_seconds=300) == 20

    def test_a_waiting_message_is_not_taken_for_lost(self):
        assert backoff_seconds(QueueFull("", retry_after_seconds=20), attempt=9, visibility_seconds=8) == 4


class TestApplication:
    def test_nothing_but_json_is_accepted_and_work_is_acknowledged_when_it_is_done(self):
        conf = build_celery_app("memory://", visibility_seconds=30).conf

        assert list(conf.accept_content) == list(conf.result_accept_content) == ["json"]
        assert {conf.task_serializer, conf.result_serializer, conf.event_serializer} == {"json"}
        assert (conf.task_acks_late, conf.task_reject_on_worker_lost) == (True, True)
        assert conf.worker_prefetch_multiplier == 1
        assert conf.worker_enable_remote_control is False
        assert conf.broker_transport_options["visibility_timeout"] == 30
