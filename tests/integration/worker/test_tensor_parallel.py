"""A base that is sharded over two processes: what it answers is what one process answers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

from hilora.errors import HiloraError
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors
from services.worker.engine.engine import Engine
from services.worker.models.loader import load_model
from services.worker.models.tensor_parallel import EXIT_STATUS
from tests.builders.engine import run_until_done, submit
from tests.builders.logits import assert_close
from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.builders.tensor_parallel import (
    adapters_for,
    config,
    dtype_of,
    mixed_batch,
    save_shardable,
    walk_requests,
)

_ARCHITECTURES = ("llama", "gemma2", "phi3", "mixtral")
"""Plain; embeddings tied and scores capped; layers whose plan gathers what it shards; experts."""
_START_SECONDS = 120.0


def _environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bases, each with what two processes made of it."""
    root = tmp_path_factory.mktemp("sharded")
    folders = {architecture: root / architecture for architecture in _ARCHITECTURES}
    for architecture, folder in folders.items():
        save_shardable(folder, architecture)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.builders.tensor_parallel", *map(str, folders.values())],
        env=_environment(),
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folders


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
class TestAgainstOneProcess:
    def test_a_mixed_batch_has_the_same_logits(self, folders, architecture) -> None:
        found = torch.load(folders[architecture] / "sharded.pt")["mixed_batch"]
        loaded = load_model(str(folders[architecture]), device="cpu", dtype=dtype_of(folders[architecture]))
        expected = mixed_batch(loaded, architecture)
        tolerance = 1e-9 if loaded.dtype is torch.float64 else 1e-4
        assert found.keys() == expected.keys()
        for name, (token_ids, logits) in expected.items():
            assert found[name][0] == token_ids
            assert_close(found[name][1], logits, tolerance)

    def test_adapters_that_come_and_go_change_no_answer(self, folders, architecture) -> None:
        found = torch.load(folders[architecture] / "sharded.pt")["random_walk"]
        loaded = load_model(str(folders[architecture]), device="cpu", dtype=dtype_of(folders[architecture]))
        engine = Engine(loaded=loaded, source=adapters_for(architecture), config=config())
        asked = walk_requests()
        expected = {name: submit(engine, name, asked[name][0], plan=asked[name][1], max_tokens=4) for name in found}
        run_until_done(engine, *expected.values(), max_steps=5000)
        engine.stop(drain_seconds=0)
        assert len(found) > len(asked) / 2
        assert {name: one[0] for name, one in found.items()} == {name: one.token_ids for name, one in expected.items()}


class _Processes:
    """The processes of one worker, started without a watcher that would end one for the other."""

    def __init__(self, environment: dict[str, str]) -> None:
        common = environment | {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
        self.leader, self.follower = (
            subprocess.Popen(
                [sys.executable, "-m", "services.worker"],
                env=_environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)),
                cwd=Path(__file__).parents[3],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(2)
        )

    def end(self) -> None:
        for process in (self.leader, self.follower):
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "tiny-base"
    save_shardable(folder, "llama")
    return folder


@pytest.fixture
def processes(stack, base_folder) -> Iterator[tuple[_Processes, str]]:
    """A sharded worker beside the one of `stack`, with the same registry; and where its door is."""
    port = free_port()
    started = _Processes(
        {
            "HILORA_WORKER_BASE_MODEL": str(base_folder),
            "HILORA_WORKER_REGISTRY_ADDRESS": stack.registry_server.address,
            "HILORA_WORKER_RPC_PORT": str(port),
            "HILORA_WORKER_DEVICE": "cpu",
            "HILORA_WORKER_MAX_MODEL_LEN": "64",
            "HILORA_WORKER_NUM_THREADS": "1",
            "HILORA_WORKER_DRAIN_SECONDS": "10",
            "HILORA_WORKER_MAX_STEP_SECONDS": "8",
        }
    )
    yield started, f"127.0.0.1:{port}"
    started.end()


def _request(request_id: str, plan=None) -> worker_pb2.GenerateRequest:
    return worker_pb2.GenerateRequest(
        request_id=request_id,
        prompt="hello there",
        plan=plan,
        sampling=worker_pb2.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8),
    )


async def _tokens(stub: worker_pb2_grpc.WorkerServiceStub, request: worker_pb2.GenerateRequest) -> list[int]:
    with translated_errors("worker"):
        return [token async for event in stub.Generate(request) for token in event.delta.token_ids]


async def _until_ready(stub: worker_pb2_grpc.WorkerServiceStub, leader: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(patient(_START_SECONDS)):
        while leader.poll() is None:
            try:
                if (await stub.Stats(worker_pb2.StatsRequest())).catalog_generation > 0:
                    return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)
    raise AssertionError(f"the leader ended with {leader.returncode}")


class TestWorker:
    async def test_it_answers_as_one_process_does_and_drains(self, stack, processes) -> None:
        started, address = processes
        async with open_channel(address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            await _until_ready(stub, started.leader)
            for name, plan in (("base", None), ("a", stack.plan("a")), ("bc", stack.plan("b", "c", num_rocs=2))):
                assert await _tokens(stub, _request(name, plan)) == await _tokens(stack.stub, _request(name, plan))
            # As a node does that shuts down: to all processes at once, in the middle of a request.
            running = asyncio.create_task(_tokens(stub, _request("last", stack.plan("a"))))
            await asyncio.sleep(0.05)
            for process in (started.leader, started.follower):
                process.send_signal(signal.SIGTERM)
            assert len(await running) == 8
        assert await asyncio.to_thread(started.leader.wait, 30) == 0
        assert await asyncio.to_thread(started.follower.wait, 30) == 0

    async def test_a_leader_that_is_gone_ends_its_follower(self, processes) -> None:
        started, address = processes
        async with open_channel(address) as channel:
            await _until_ready(worker_pb2_grpc.WorkerServiceStub(channel), started.leader)
            started.leader.kill()
        # On a busy machine the follower may still be loading: then it refuses to start.
        assert await asyncio.to_thread(started.follower.wait, 30) in {EXIT_STATUS, 2}

    @pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
    async def test_a_follower_that_is_gone_or_stuck_ends_the_leader(self, processes, fate) -> None:
        started, address = processes
        async with open_channel(address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            await _until_ready(stub, started.leader)
            started.follower.send_signal(fate)
            with pytest.raises(HiloraError):
                await _tokens(stub, _request("r"))
        assert await asyncio.to_thread(started.leader.wait, 30) == EXIT_STATUS
