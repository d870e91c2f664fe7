from __future__ import annotations

from contextlib import closing

import pytest

from hilora.errors import UnknownAdapter
from hilora.routing_plan import RoutingPlan
from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.model_shape import build_base, find_shape, twin_of
from hilora_lab.bench.workload import Workload, build_workload, random_prompts
from services.worker.engine.config import EngineConfig


@pytest.fixture(scope="module")
def base():
    return build_base(find_shape("tiny"))


def make_drive(base, workload: Workload, **config) -> EngineDrive:
    settings = {"max_num_seqs": 4, "max_model_len": 32, "max_num_batched_tokens": 64, "roc_pool_bytes": 8 << 20}
    return EngineDrive(loaded=twin_of(base), source=workload, config=EngineConfig(**{**settings, **config}))


def requests_of(base, workload: Workload, *, num_requests: int = 3, has_plans: bool = True) -> list[BenchRequest]:
    prompts = random_prompts(num_requests, length=8, vocab_size=base.vocab_size, seed=0)
    return [
        BenchRequest(prompt=prompt, plan=workload.plans[idx] if has_plans else RoutingPlan())
        for idx, prompt in enumerate(prompts)
    ]


class TestComplete:
    def test_decode_steps_are_those_in_which_everybody_gets_one_more_token(self, base):
        workload = build_workload(base.model, num_adapters=4)
        with closing(make_drive(base, workload)) as drive:
            times = drive.complete(requests_of(base, workload, has_plans=False), new_tokens=6)

        assert times.num_tokens == 18
        assert len(times.decode_step_seconds) == 5
        assert 0 < sum(times.decode_step_seconds) < times.total_seconds
        assert times.tokens_per_second == pytest.approx(18 / times.total_seconds)
        assert times.decode_tokens_per_second == pytest.approx(15 / sum(times.decode_step_seconds))

    def test_steps_that_read_prompts_do_not_count(self, base):
        workload = build_workload(base.model, num_adapters=4)
        # Room for one prompt a step: by the time the third one is read, the first two have had tokens.
        with closing(make_drive(base, workload, max_num_batched_tokens=10)) as drive:
            times = drive.complete(requests_of(base, workload, has_plans=False), new_tokens=6)

        assert times.num_tokens == 18
        assert len(times.decode_step_seconds) < 5

    def test_one_token_each_has_no_decode_step(self, base):
        workload = build_workload(base.model, num_adapters=4)
        with closing(make_drive(base, workload)) as drive:
            times = drive.complete(requests_of(base, workload, has_plans=False), new_tokens=1)

        with pytest.raises(ValueError, match="no step"):
            _ = times.decode_seconds

    def test_a_failed_request_measures_nothing(self, base):
        workload = build_workload(base.model, num_adapters=4)
        with (
            closing(make_drive(base, Workload(adapters={}, plans=workload.plans))) as drive,
            pytest.raises(UnknownAdapter),
        ):
            drive.complete(requests_of(base, workload), new_tokens=2)


def test_started_requests_all_decode(base):
    workload = build_workload(base.model, num_adapters=4)
    # One prompt a step: the first requests have several tokens before the last one has its first.
    with closing(make_drive(base, workload, max_num_batched_tokens=10)) as drive:
        drive.start(requests_of(base, workload), new_tokens=20)

        assert drive.step()[1] == 3
        assert drive.step()[1] == 3
        drive.abort_all()


def test_aborting_ends_everything_and_leaves_the_engine_usable(base):
    workload = build_workload(base.model, num_adapters=4)
    with closing(make_drive(base, workload)) as drive:
        for request in requests_of(base, workload):
            drive.submit(request, new_tokens=20)
        drive.step()
        drive.abort_all()

        assert drive.engine.stats().num_running == 0
        drive.engine.check_integrity()
        assert drive.complete(requests_of(base, workload), new_tokens=2).num_tokens == 6
