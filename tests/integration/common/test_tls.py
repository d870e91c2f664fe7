"""Mutual TLS between services, over real connections."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hilora.errors import InvalidInput
from services.common.rpc_client import open_channel
from services.common.rpc_server import RpcServer
from services.common.tls import TlsIdentity
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings
from tests.builders.certificates import Authority
from tests.builders.patience import patient
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually


@pytest.fixture
def authority():
    return Authority()


@pytest.fixture
async def server(tmp_path, authority):
    """Says what its certificate's name is, and takes calls of `router` alone."""
    identity = TlsIdentity(authority.write(tmp_path / "server", "worker"), client_names=["router"])
    it = RpcServer(host="127.0.0.1", port=0, register=[], service_names=[], identity=identity, health_port=0)
    await it.start()
    yield it
    await it.stop(grace_seconds=0)


async def check(channel):
    """The status of a health check; OK if it was answered."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=patient(3))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def check_as(server, files, **names):
    channel = open_channel(server.address, identity=TlsIdentity(files, **names))
    try:
        return await check(channel)
    finally:
        await channel.close()


class TestCalls:
    async def test_services_of_one_authority_talk(self, server, authority, tmp_path):
        files = authority.write(tmp_path / "client", "router")
        assert await check_as(server, files, server_name="worker") is grpc.StatusCode.OK

    async def test_without_a_certificate_nobody_is_let_in(self, server):
        channel = open_channel(server.address)
        assert await check(channel) is grpc.StatusCode.UNAVAILABLE
        await channel.close()

    async def test_nor_with_one_of_another_authority(self, server, authority, tmp_path):
        files = Authority().write(tmp_path / "stranger", "router")
        # The stranger believes ours; it is the server that does not believe the stranger's.
        files.authorities.write_bytes(authority.write(tmp_path / "ours", "router").authorities.read_bytes())
        assert await check_as(server, files, server_name="worker") is grpc.StatusCode.UNAVAILABLE

    async def test_nor_with_one_that_has_expired(self, server, authority, tmp_path):
        files = authority.write(tmp_path / "late", "router", days=-1)
        assert await check_as(server, files, server_name="worker") is grpc.StatusCode.UNAVAILABLE

    async def test_nor_with_one_of_tomorrow(self, server, authority, tmp_path):
        files = authority.write(tmp_path / "early", "router", days=2, begins_in_days=1)
        assert await check_as(server, files, server_name="worker") is grpc.StatusCode.UNAVAILABLE

    async def test_nor_with_one_for_another_name(self, server, authority, tmp_path):
        files = authority.write(tmp_path / "other", "registry")
        assert await check_as(server, files, server_name="worker") is grpc.StatusCode.PERMISSION_DENIED

    async def test_a_server_of_another_name_is_not_believed(self, server, authority, tmp_path):
        files = authority.write(tmp_path / "client", "router")
        assert await check_as(server, files, server_name="registry") is grpc.StatusCode.UNAVAILABLE

    @pytest.mark.parametrize(
        ("is_of_another_authority", "days", "code"),
        [
            (False, 1, grpc.StatusCode.OK),
            (True, 1, grpc.StatusCode.UNAVAILABLE),
            (False, -1, grpc.StatusCode.UNAVAILABLE),
        ],
        ids=["sound", "of another authority", "expired"],
    )
    async def test_a_server_that_cannot_show_who_it_is_is_not_believed(
        self, authority, tmp_path, is_of_another_authority, days, code
    ):
        signer = Authority() if is_of_another_authority else authority
        files = signer.write(tmp_path / "server", "worker", days=days)
        ours = authority.write(tmp_path / "client", "router")
        # The server believes the client, so that only the client can refuse.
        files.authorities.write_bytes(ours.authorities.read_bytes())
        identity = TlsIdentity(files, client_names=["router"])
        it = RpcServer(host="127.0.0.1", port=0, register=[], service_names=[], identity=identity)
        await it.start()
        try:
            assert await check_as(it, ours, server_name="worker") is code
        finally:
            await it.stop(grace_seconds=0)

    async def test_probes_have_a_port_of_their_own(self, server):
        channel = open_channel(server.health_address)
        assert await check(channel) is grpc.StatusCode.OK
        await channel.close()


class TestRotation:
    async def test_new_certificates_are_taken_up_on_both_ends_without_a_failed_call(self, server, authority, tmp_path):
        client_files = authority.write(tmp_path / "client", "router")
        channel = open_channel(server.address, identity=TlsIdentity(client_files, server_name="worker"))
        answers = []

        async def call_on():
            while True:
                answers.append(await check(channel))
                await asyncio.sleep(0.01)

        calling = asyncio.create_task(call_on())
        await asyncio.sleep(0.3)
        for folder, name in (("server", "worker"), ("client", "router")):
            authority.write(tmp_path / folder, name)
        before = len(answers)
        await asyncio.sleep(1.5)
        calling.cancel()
        await channel.close()
        assert len(answers) > before + 10
        assert set(answers) == {grpc.StatusCode.OK}

    async def test_a_certificate_beside_another_one_s_key_is_passed_over(self, authority, tmp_path):
        files = authority.write(tmp_path / "one", "router")
        identity = TlsIdentity(files)
        before = identity.current()
        files.key.write_bytes(authority.write(tmp_path / "two", "router").key.read_bytes())
        await asyncio.sleep(0.6)
        assert identity.current() is before

    @pytest.mark.parametrize("spoilt", ["certificate", "key", "authorities"])
    def test_what_is_no_certificate_is_refused_at_the_start(self, authority, tmp_path, spoilt):
        files = authority.write(tmp_path / "one", "router")
        getattr(files, spoilt).write_bytes(b"nonsense")
        with pytest.raises(InvalidInput) as refusal:
            TlsIdentity(files)
        assert refusal.value.code == "invalid_certificate"


class TestServices:
    async def test_a_router_follows_its_registry_over_tls(self, authority, tmp_path):
        files = authority.write(tmp_path / "all", "hilora")
        tls = {
            "tls_cert_file": files.certificate,
            "tls_key_file": files.key,
            "tls_ca_file": files.authorities,
            "tls_server_name": "hilora",
            "tls_client_names": ("hilora",),
        }
        registry = FakeRegistry(identity=TlsIdentity(files, client_names=["hilora"]))
        await registry.start()
        settings = RouterSettings(
            rpc_port=0, rest_port=0, registry_address=registry.address, worker_addresses=("127.0.0.1:1",), **tls
        )
        router = build_router(settings, load_encoder=HashEncoder)
        await router.start()
        try:
            await eventually(lambda: router.readiness().parts["registry"] == "following")
            plain = open_channel(router.rpc_address)
            assert await check(plain) is grpc.StatusCode.UNAVAILABLE
            await plain.close()
        finally:
            await router.stop(grace_seconds=0)
            await registry.stop()

    def test_half_a_certificate_is_a_mistake(self, tmp_path):
        with pytest.raises(ValueError, match="belong together"):
            WorkerSettings(base_model="x", tls_cert_file=tmp_path / "tls.crt")
