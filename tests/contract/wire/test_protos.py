"""What every message and service of the wire contract promises."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

from hilora.adapter import RocBasis
from hilora.routing_plan import GateRule, GateScope, PreparationMethod, RocScore, RoutingMode
from hilora_rpc.v1 import registry_pb2, router_pb2, routing_pb2, worker_pb2

FILES: list[FileDescriptor] = [module.DESCRIPTOR for module in (routing_pb2, registry_pb2, worker_pb2, router_pb2)]
SOURCES = sorted((Path(__file__).resolve().parents[3] / "proto" / "hilora_rpc" / "v1").glob("*.proto"))
ENUMS = [enum for file in FILES for enum in file.enum_types_by_name.values()] + [
    enum for file in FILES for message in file.message_types_by_name.values() for enum in message.enum_types
]


class TestEnums:
    @pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.full_name)
    def test_zero_means_nothing_was_said(self, enum):
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")

    @pytest.mark.parametrize(
        ("core", "prefix"),
        [
            (RocScore, "ROC_SCORE_"),
            (GateScope, "GATE_SCOPE_"),
            (GateRule, "GATE_RULE_"),
            (PreparationMethod, "PREPARATION_METHOD_"),
            (RocBasis, "ROC_BASIS_"),
            (RoutingMode, "ROUTING_MODE_"),
        ],
    )
    def test_the_wire_and_the_algorithm_know_the_same_values(self, core, prefix):
        wire = next(enum for enum in ENUMS if any(value.name.startswith(prefix) for value in enum.values))

        names = {value.name.removeprefix(prefix).lower() for value in wire.values} - {"unspecified"}

        assert names == {member.value for member in core}


class TestNames:
    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
    def test_one_name_on_disk_on_the_wire_and_in_python(self, file):
        assert file.package == "hilora_rpc.v1"
        assert file.name.startswith("hilora_rpc/v1/")

    def test_sizes_and_durations_carry_their_unit(self):
        numbers = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_UINT64}
        vague = re.compile(r"(size|length|time|duration|latency|timeout)$")

        offenders = [
            field.full_name
            for file in FILES
            for message in file.message_types_by_name.values()
            for field in message.fields
            if field.type in numbers and vague.search(field.name)
        ]

        assert offenders == []


DECLARATION = re.compile(
    r"^\s*((message|enum|service|rpc|oneof) \w+|((optional|repeated) )?[\w.<>, ]+ \w+ = [1-9]\d*;|[A-Z_]+ = [1-9]\d*;)"
)


class TestComments:
    @pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
    def test_everything_that_is_declared_is_explained(self, path):
        lines = path.read_text().splitlines()

        bare = [
            line for before, line in pairwise(lines) if DECLARATION.match(line) and not before.strip().startswith("//")
        ]

        assert bare == []
