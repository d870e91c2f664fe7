from __future__ import annotations

import inspect

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora import errors
from hilora.errors import HiloraError, QueueFull, UnknownAdapter
from services.common.errors import (
    error_from_dict,
    error_from_rpc,
    error_metadata,
    error_to_dict,
    http_headers,
    mapping_of,
    openai_body,
)

ALL_CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, HiloraError)]


class RemoteError(grpc.aio.AioRpcError):
    """What a client sees of a server that aborted."""


def remote(status: grpc.StatusCode, metadata: tuple[tuple[str, bytes], ...] = ()) -> RemoteError:
    return RemoteError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details="gone")


class TestTable:
    @pytest.mark.parametrize(
        ("cls", "http", "rpc"),
        [
            ("InvalidInput", 400, "INVALID_ARGUMENT"),
            ("InvalidAdapter", 422, "INVALID_ARGUMENT"),
            ("UnsafeArchive", 422, "INVALID_ARGUMENT"),
            ("UnknownAdapter", 404, "NOT_FOUND"),
            ("AdapterAlreadyRegistered", 409, "ALREADY_EXISTS"),
            ("StaleCatalogGeneration", 409, "FAILED_PRECONDITION"),
            ("QueueFull", 429, "RESOURCE_EXHAUSTED"),
            ("NoWorkerAvailable", 503, "UNAVAILABLE"),
            ("RequestAborted", 499, "CANCELLED"),
            ("GenerationFailed", 500, "INTERNAL"),
            ("HiloraError", 500, "INTERNAL"),
        ],
    )
    def test_each_kind_has_its_statuses(self, cls, http, rpc):
        mapping = mapping_of(getattr(errors, cls)("x"))

        assert (mapping.http_status, mapping.grpc_status.name) == (http, rpc)

    @pytest.mark.parametrize("cls", ALL_CLASSES)
    def test_every_class_is_mapped_and_has_a_code(self, cls):
        assert mapping_of(cls("x")).http_status >= 400
        assert cls("x").code == cls.default_code != ""

    def test_codes_are_unique(self):
        codes = [cls.default_code for cls in ALL_CLASSES]

        assert len(set(codes)) == len(codes)


class TestOpenAIBody:
    def test_says_what_where_and_what_to_do(self):
        error = UnknownAdapter("No model 'x'.", code="model_not_found", remedy="Ask /v1/models.", place="model")

        assert openai_body(error) == {
            "error": {
                "message": "No model 'x'. Ask /v1/models.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
                "remedy": "Ask /v1/models.",
            }
        }

    @given(st.floats(min_value=0, max_value=1e6))
    def test_retry_after_is_whole_seconds_and_at_least_one(self, seconds):
        headers = http_headers(QueueFull("full", retry_after_seconds=seconds))

        assert int(headers["Retry-After"]) >= 1

    def test_other_errors_set_no_header(self):
        assert http_headers(UnknownAdapter("x")) == {}


class TestOverTheWire:
    @given(
        cls=st.sampled_from(ALL_CLASSES),
        message=st.text(),
        remedy=st.none() | st.text(min_size=1),
        place=st.none() | st.text(min_size=1),
    )
    def test_an_error_comes_back_as_it_was(self, cls, message, remedy, place):
        error = cls(message, code="some_code", remedy=remedy, place=place)

        again = error_from_dict(error_to_dict(error))

        assert type(again) is cls
        assert error_to_dict(again) == error_to_dict(error)

    def test_metadata_wins_over_the_status(self):
        sent = QueueFull("full", retry_after_seconds=3, code="queue_full", remedy="Wait.")

        received = error_from_rpc(remote(grpc.StatusCode.INTERNAL, error_metadata(sent)), peer="worker")

        assert isinstance(received, QueueFull)
        assert received.retry_after_seconds == 3
        assert received.remedy == "Wait."

    def test_a_bare_status_names_the_peer(self):
        received = error_from_rpc(remote(grpc.StatusCode.UNAVAILABLE), peer="worker at h:1")

        assert isinstance(received, errors.Unavailable)
        assert "worker at h:1" in str(received)

    def test_an_unknown_kind_is_still_an_error_of_ours(self):
        received = error_from_dict({"kind": "FromTheFuture", "code": "c", "message": "m"})

        assert type(received) is HiloraError
        assert received.code == "c"
