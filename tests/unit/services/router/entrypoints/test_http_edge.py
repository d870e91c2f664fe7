from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from services.router.entrypoints.http_edge import HttpEdge
from services.router.entrypoints.router_metrics import RouterMetrics
from tests.fakes.router_ports import FakeWorkers, InMemoryCatalog


class Call:
    """One request through the edge to an application of the test's."""

    def __init__(self, app, *, headers=(), body=(b"",), path="/v1/completions", max_body_bytes=10):
        self.metrics = RouterMetrics(catalog=InMemoryCatalog(), workers=FakeWorkers())
        self.edge = HttpEdge(app, metrics=self.metrics, max_body_bytes=max_body_bytes)
        self.scope = {"type": "http", "path": path, "headers": list(headers)}
        self.body = list(body)
        self.sent = []

    async def run(self):
        async def receive():
            return {"type": "http.request", "body": self.body.pop(0), "more_body": bool(self.body)}

        async def send(message):
            self.sent.append(message)

        await self.edge(self.scope, receive, send)
        return self

    def counted(self, outcome):
        return f'outcome="{outcome}"}} 1.0' in self.metrics.render()[0].decode()


def answering(status, *, is_complete=True):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": not is_complete})

    return app


class TestRequestId:
    async def test_a_sound_id_is_kept(self):
        call = await Call(answering(200), headers=[(b"x-request-id", b"abc-1")]).run()
        assert call.scope["state"]["request_id"] == "abc-1"
        assert (b"x-request-id", b"abc-1") in call.sent[0]["headers"]

    @pytest.mark.parametrize("presented", [b"", b"a b", b"a\r\nb", b"x" * 129, b"\xff"])
    async def test_any_other_is_replaced(self, presented):
        call = await Call(answering(200), headers=[(b"x-request-id", presented)]).run()
        assert call.scope["state"]["request_id"].startswith("req-")


class TestOutcome:
    @pytest.mark.parametrize(
        ("status", "is_complete", "outcome"),
        [
            (200, True, "ok"),
            (404, True, "refused"),
            (429, True, "exhausted"),
            (499, True, "aborted"),
            (503, True, "failed"),
            (200, False, "aborted"),
        ],
    )
    async def test_it_follows_the_status_and_the_end(self, status, is_complete, outcome):
        assert (await Call(answering(status, is_complete=is_complete)).run()).counted(outcome)

    async def test_a_stream_that_broke_has_failed_although_its_status_was_200(self):
        async def app(scope, receive, send):
            await answering(200)(scope, receive, send)
            scope["state"]["has_failed"] = True

        assert (await Call(app).run()).counted("failed")

    async def test_an_exception_has_failed(self):
        async def app(scope, receive, send):
            raise KeyError("x")

        call = Call(app)
        with pytest.raises(KeyError):
            await call.run()
        assert call.counted("failed")

    @pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/made-up/path"])
    async def test_other_paths_make_no_label(self, path):
        call = await Call(answering(200), path=path).run()
        assert "made-up" not in call.metrics.render()[0].decode()
        assert not call.counted("ok")


class TestBodyCap:
    async def test_it_counts_over_all_pieces(self):
        async def app(scope, receive, send):
            while (await receive())["more_body"]:
                continue
            await answering(200)(scope, receive, send)

        assert (await Call(app, body=[b"12345", b"67890"]).run()).counted("ok")
        with pytest.raises(HTTPException) as raised:
            await Call(app, body=[b"12345", b"67890", b"1"]).run()
        assert raised.value.status_code == 413
