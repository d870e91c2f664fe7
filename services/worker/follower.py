"""A process that computes a shard of the model and takes its orders from the one with the door."""

from __future__ import annotations

import signal

from services.common.log import get_logger
from services.worker.base_setup import engine_config, join_group, load_base
from services.worker.engine.execution.parallel_runner import Follower
from services.worker.settings import ProcessPlace, WorkerSettings

_log = get_logger(__name__)


def run_follower(settings: WorkerSettings, place: ProcessPlace) -> None:
    """Follow until the leader has drained and lets go.

    Signals are not for followers: they reach all processes at once, and the leader's requests must finish first. If the
    leader ends in any other way, so does this process, with `EXIT_STATUS`.

    Raises:
        InvalidInput: the base model cannot be loaded, or not be divided.
        ValueError: the limits contradict one another.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    group = join_group(settings, place)
    assert group is not None, "a follower is one of several processes"
    loaded = load_base(settings, group)
    follower = Follower(loaded, engine_config(settings, loaded))
    _log.info("following", rank=group.rank, num_processes=group.size, device=str(loaded.device))
    follower.run()
    group.leave()
