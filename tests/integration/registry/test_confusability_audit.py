"""The audit as an operator asks for it: through the REST door and gRPC, on adapters that were really ingested."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from pydantic import SecretStr

from hilora.adapter import RocBasis
from hilora.decomposition import delta_weight
from hilora.errors import InvalidInput, PermissionDenied, Unauthenticated, UnknownAdapter
from hilora_rpc.v1 import audit_pb2, audit_pb2_grpc
from services.common.auth import AccessKey, Scope
from services.common.rpc_client import open_channel, translated_errors
from services.common.rpc_server import RpcServer
from services.registry.entrypoints.confusability_rpc import AUDIT_SERVICE_NAME, AuditServicer
from services.registry.entrypoints.rpc_access import RpcAccess
from tests.builders.adapters import MODULE_SHAPES
from tests.builders.archives import adapter_files, samples_bytes, weights_bytes
from tests.fakes.registry_stack import RegistryStack

_WORDS = {
    "capitals": ["capital", "country", "city", "atlas"],
    "sums": ["add", "number", "total", "digits"],
    "poems": ["verse", "rhyme", "stanza", "ode"],
}


def texts_of(task: str, *, offset: int = 0, num: int = 8) -> Sequence[str]:
    words = _WORDS[task]
    return [f"{words[place % 4]} {words[(place + 1) % 4]} {task} x{place + offset}" for place in range(num)]


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def add(stack, name: str, *, texts: Sequence[str], seed: int) -> None:
    files = adapter_files(samples=samples_bytes(*texts), weights=weights_bytes(seed=seed))
    async with stack.client() as client:
        accepted = await client.post(
            "/v1/adapters", data={"name": name}, files=[("files", item) for item in files.items()]
        )
    assert accepted.status_code == 202, accepted.text
    await stack.work()


@pytest.fixture
async def pool(stack):
    """Three tasks; `sums` has a twin in text and weights and one in text only."""
    for seed, task in enumerate(_WORDS):
        await add(stack, task, texts=texts_of(task), seed=seed)
    await add(stack, "sums-again", texts=texts_of("sums", offset=50), seed=1)
    await add(stack, "sums-other", texts=texts_of("sums", offset=90), seed=7)
    return stack


async def get(stack, path: str, **parameters):
    async with stack.client() as client:
        answer = await client.get(path, params=parameters)
    return answer.status_code, answer.json()


class TestOneAdapter:
    async def test_a_twin_in_text_and_weights_is_to_be_merged(self, pool):
        status, body = await get(pool, "/v1/adapters/sums/confusability")
        assert status == 200
        twin = next(rival for rival in body["rivals"] if rival["name"] == "sums-again")
        assert twin["is_near_duplicate"] and twin["same_task_ratio"] < 1.5
        assert twin["overlap"]["cosine"] == pytest.approx(1.0, abs=1e-4)
        assert twin["overlap"]["norm_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert set(twin["overlap"]["modules"]) == set(MODULE_SHAPES)
        assert body["advice"] == "merge"
        assert "sums-again" in body["explanation"]

    async def test_a_twin_in_text_that_does_something_else_is_to_be_described_anew(self, pool):
        _, body = await get(pool, "/v1/adapters/sums-other/confusability")
        assert body["advice"] == "redescribe"
        assert {"sums", "sums-again"} <= {rival["name"] for rival in body["rivals"] if rival["is_near_duplicate"]}
        assert all(abs(rival["overlap"]["cosine"]) < 0.9 for rival in body["rivals"])

    async def test_an_adapter_of_its_own_has_rivals_but_no_duplicates(self, pool):
        _, body = await get(pool, "/v1/adapters/poems/confusability")
        assert len(body["rivals"]) == 4
        assert not any(rival["is_near_duplicate"] for rival in body["rivals"])
        distances = [rival["distance"] for rival in body["rivals"]]
        assert distances == sorted(distances)
        assert body["rivals"][0]["error_bound"] == pytest.approx(0.5 * np.exp(-distances[0]))
        assert body["routed_right_at_least"] >= max(0.0, 1.0 - sum(np.exp(-distance) for distance in distances) - 1e-9)

    async def test_few_samples_are_said_to_be_few(self, pool):
        await add(pool, "short", texts=["something wholly different here"], seed=9)
        _, body = await get(pool, "/v1/adapters/short/confusability")
        assert body["num_samples"] == 1
        assert body["advice"] in {"add_samples", "redescribe"}

    async def test_an_unknown_name(self, pool):
        status, body = await get(pool, "/v1/adapters/nobody/confusability")
        assert (status, body["error"]["code"]) == (404, "unknown_adapter")

    async def test_the_only_adapter_has_nobody_to_be_taken_for(self, stack):
        await add(stack, "poems", texts=texts_of("poems"), seed=1)
        _, body = await get(stack, "/v1/adapters/poems/confusability")
        assert (body["rivals"], body["routed_right_at_least"], body["advice"]) == ([], 1.0, "fine")


class TestThePool:
    async def test_those_at_most_risk_come_first(self, pool):
        status, body = await get(pool, "/v1/adapters/audit")
        assert status == 200
        assert (body["num_audited"], body["num_passed_over"]) == (5, 0)
        names = [row["name"] for row in body["data"]]
        assert set(names[:3]) == {"sums", "sums-again", "sums-other"}
        bounds = [row["routed_right_at_least"] for row in body["data"]]
        assert bounds == sorted(bounds)
        assert {row["name"]: row["advice"] for row in body["data"]}["poems"] == "fine"

    async def test_updates_are_compared_only_where_the_texts_are_alike(self, pool):
        _, body = await get(pool, "/v1/adapters/audit")
        for row in body["data"]:
            compared = [rival["overlap"] is not None for rival in row["rivals"]]
            assert not any(compared[1:])
            assert compared[0] == row["rivals"][0]["is_near_duplicate"]

    async def test_pages_together_are_the_whole(self, pool):
        _, whole = await get(pool, "/v1/adapters/audit")
        pages = [await get(pool, "/v1/adapters/audit", offset=offset, limit=2) for offset in (0, 2, 4, 6)]
        assert [row for _, page in pages for row in page["data"]] == whole["data"]
        assert pages[-1][1]["data"] == []

    async def test_an_empty_pool_has_an_empty_audit(self, stack):
        _, body = await get(stack, "/v1/adapters/audit")
        assert (body["num_audited"], body["data"]) == (0, [])

    async def test_a_change_of_the_catalogue_is_seen(self, pool):
        await get(pool, "/v1/adapters/audit")
        for name in ("sums-again", "sums-other"):
            await pool.catalog.retire(name)
        _, body = await get(pool, "/v1/adapters/audit")
        assert [row["name"] for row in body["data"] if row["advice"] == "merge"] == []
        assert body["num_audited"] == 3

    @pytest.mark.parametrize("parameters", [{"offset": -1}, {"limit": 0}, {"limit": 501}])
    async def test_limits_of_a_page(self, stack, parameters):
        status, _ = await get(stack, "/v1/adapters/audit", **parameters)
        assert status == 400


class TestStatistics:
    async def test_an_adapter_shows_the_size_of_its_update(self, pool):
        _, body = await get(pool, "/v1/adapters/poems")
        entry = await pool.catalog.entry("poems")
        adapter = pool.components.svd_components(entry.revision)
        assert adapter.basis is RocBasis.SVD
        for path, rocs in adapter.modules.items():
            weight = delta_weight(rocs).double().numpy()
            singular = np.linalg.svd(weight, compute_uv=False)
            shown = body["update"]["modules"][path]
            assert shown["singular_values"] == pytest.approx(singular[:4].tolist(), rel=1e-4)
            assert shown["frobenius_norm"] == pytest.approx(np.linalg.norm(weight), rel=1e-4)
            assert shown["stable_rank"] == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-4)
        assert body["update"]["spectral_norm"] == max(
            module["spectral_norm"] for module in body["update"]["modules"].values()
        )

    async def test_a_version_stored_without_statistics_gets_them_from_its_components(self, pool):
        entry = await pool.catalog.entry("poems")
        stored = pool.components.statistics(entry.revision)
        file = pool.data_dir / "artifacts" / entry.revision / "statistics.json"
        assert file.stat().st_size < 1000
        file.unlink()
        assert pool.components.statistics(entry.revision) == stored

    async def test_an_unknown_revision(self, stack):
        with pytest.raises(UnknownAdapter):
            stack.components.statistics("../" * 10)


@asynccontextmanager
async def stub_of(stack):
    """A client of the audit's gRPC door, over a real socket."""
    access = RpcAccess(keys=stack.keys, audit=stack.audit)
    server = RpcServer(
        host="127.0.0.1",
        port=0,
        register=[AuditServicer(audit=stack.confusability, access=access).register],
        service_names=[AUDIT_SERVICE_NAME],
    )
    await server.start()
    channel = open_channel(server.address)
    yield audit_pb2_grpc.AuditServiceStub(channel)
    await channel.close()
    await server.stop(grace_seconds=0)


class TestOverGrpc:
    @pytest.fixture
    async def stub(self, pool):
        async with stub_of(pool) as stub:
            yield stub

    async def test_it_says_what_rest_says(self, pool, stub):
        message = await stub.GetConfusability(audit_pb2.GetConfusabilityRequest(adapter_name="sums"))
        _, body = await get(pool, "/v1/adapters/sums/confusability")
        assert message.advice == audit_pb2.AUDIT_ADVICE_MERGE
        assert [rival.adapter_name for rival in message.rivals] == [rival["name"] for rival in body["rivals"]]
        assert message.rivals[0].distance == body["rivals"][0]["distance"]
        assert message.rivals[0].overlap.modules.keys() == body["rivals"][0]["overlap"]["modules"].keys()

    async def test_pages(self, stub):
        page = await stub.AuditAdapters(audit_pb2.AuditAdaptersRequest(offset=1, limit=2))
        assert (page.num_audited, len(page.adapters)) == (5, 2)

    async def test_refusals(self, stub):
        with pytest.raises(UnknownAdapter), translated_errors("registry"):
            await stub.GetConfusability(audit_pb2.GetConfusabilityRequest(adapter_name="nobody"))
        with pytest.raises(InvalidInput), translated_errors("registry"):
            await stub.AuditAdapters(audit_pb2.AuditAdaptersRequest(limit=501))

    async def test_only_keys_that_may_read_are_answered(self, tmp_path):
        keys = [AccessKey.of_secret(scope.value, SecretStr(scope.value), frozenset({scope})) for scope in Scope]
        request = audit_pb2.AuditAdaptersRequest(limit=2)
        async with stub_of(RegistryStack(tmp_path, keys=keys)) as stub:
            with pytest.raises(Unauthenticated), translated_errors("registry"):
                await stub.AuditAdapters(request)
            for scope in set(Scope) - {Scope.READ}:
                with pytest.raises(PermissionDenied), translated_errors("registry"):
                    await stub.AuditAdapters(request, metadata=[("authorization", f"Bearer {scope.value}")])
            page = await stub.AuditAdapters(request, metadata=[("authorization", f"Bearer {Scope.READ.value}")])
        assert page.num_audited == 0


class TestNames:
    async def test_a_name_that_the_routes_could_not_reach_is_refused(self, stack):
        async with stack.client() as client:
            answer = await client.post(
                "/v1/adapters", data={"name": "audit"}, files=[("files", item) for item in adapter_files().items()]
            )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_adapter_name")
