"""Each container in turn is killed, paused and cut off under light load; docs/operations.md's table holds here as well.

What needs one of everything to answer (router, worker) may fail clearly while it is away; all else must not be noticed.
Afterwards everything is as before, without anybody's help but the one that ended the fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.builders.light_load import light_load
from tests.builders.system import wait_until

pytestmark = pytest.mark.timeout(900)

FAULT_SECONDS = 8.0
UNNOTICED = ("redis", "registry", "registry-ingest")
NOTICED = ("router", "worker")


@pytest.fixture
def url(environment):
    return f"http://127.0.0.1:{environment['ROUTER_PORT']}"


@contextlib.contextmanager
def killed(system, service):
    """As a crash would: its restart policy has to bring it back."""
    os.kill(system.podman.inspect(system.container(service))["State"]["Pid"], signal.SIGKILL)
    yield


@contextlib.contextmanager
def paused(system, service):
    container = system.container(service)
    # runc gives up on a container in which processes begin and end meanwhile, as a health check does.
    wait_until(
        lambda: _is_paused(system.podman, container), timeout_seconds=30, what="it is paused", interval_seconds=1
    )
    try:
        time.sleep(FAULT_SECONDS)
        yield
    finally:
        system.podman("unpause", container)


def _is_paused(podman, container):
    podman("pause", container, check=False)
    return podman.inspect(container)["State"]["Paused"]


@contextlib.contextmanager
def disconnected(system, service):
    """From every network; the aliases by which others find it come back with it."""
    container = system.podman.inspect(system.container(service))
    networks = container["NetworkSettings"]["Networks"]
    for network in networks:
        system.podman("network", "disconnect", network, container["Id"])
    try:
        time.sleep(FAULT_SECONDS)
        yield
    finally:
        for network, settings in networks.items():
            aliases = [part for alias in settings.get("Aliases") or [] for part in ("--alias", alias)]
            system.podman("network", "connect", *aliases, network, container["Id"])


FAULTS = {"killed": killed, "paused": paused, "disconnected": disconnected}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("service", UNNOTICED)
def test_requests_do_not_notice(system, url, service, fault):
    with light_load(url) as load:
        load.await_ok(3, since=time.monotonic())
        with FAULTS[fault](system, service):
            load.await_ok(5, since=time.monotonic())
        system.await_healthy("redis", "registry")
        load.await_ok(5, since=time.monotonic())

    assert load.failed() == []
    _assert_an_upload_works(system)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("service", NOTICED)
def test_what_answers_comes_back_by_itself(system, url, service, fault):
    with light_load(url) as load:
        load.await_ok(3, since=time.monotonic())
        began = time.monotonic()
        with FAULTS[fault](system, service):
            pass
        ended = time.monotonic()
        system.await_healthy("router", "worker")
        load.await_ok(10, since=ended, seconds=120)
        recovered = time.monotonic()
        load.await_ok(10, since=recovered)

    assert load.failed(until=began) == []
    assert load.failed(since=recovered) == []
    for outcome in load.failed():
        # A clear answer, or a broken connection where the router itself was the one that was away.
        assert outcome.status in ({0, 503} if service == "router" else {429, 502, 503, 504}), outcome


def _assert_an_upload_works(system):
    """The catalogue's side is whole again: everything is registered, and a new ingest goes through."""
    deadline = time.monotonic() + 120
    while True:
        try:
            assert "36 were there" in system("run", "--rm", "--no-deps", "testbed")
            return
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(1)
