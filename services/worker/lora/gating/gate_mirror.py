"""Keeps the learned gates of several processes alike, as `pool_mirror` does their components.

One process leads: only it fetches gates and decides which stay. Before a step whose plans need a gate that the others
lack, it tells them what the gate consists of (`GateChange`), and then gives them its tensors. Gates are not divided:
whether a layer is sharded or not, its gate judges whole inputs, and every process must come to the same factors.

The others hold what they were told of, and never more than the leader does: there is always room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule
from services.worker.lora.gating.learned_gates import LearnedGates, LoadedGate
from services.worker.lora.pool.pool_mirror import ShareTensor


class GateRole(StrEnum):
    """What a tensor is to its layer."""

    GATE = "gate"
    BIAS = "bias"
    ROUTER_A = "router_a"
    ROUTER_B = "router_b"


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePart:
    """One tensor of a gate, without its values."""

    module_idx: int
    role: GateRole
    adapter_id: str
    """Whose it is; empty for a router."""
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class GateArrival:
    """A gate whose values come next."""

    gate_id: str
    rule: GateRule
    parts: tuple[GatePart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateChange:
    """What the followers have to do before a step."""

    departures: tuple[str, ...] = ()
    arrivals: tuple[GateArrival, ...] = ()


class GateLeader:
    """The side that decides.

    Args:
        gates: the leader's.
    """

    def __init__(self, gates: LearnedGates) -> None:
        self._gates = gates
        self._mirrored: dict[str, None] = {}

    def change_for(self, gate_ids: Iterable[str]) -> GateChange:
        """What the followers lack of gates that are acquired here, and what they hold in vain."""
        departures = tuple(gate_id for gate_id in self._mirrored if not self._gates.is_known(gate_id))
        arrivals = tuple(
            GateArrival(gate_id=gate_id, rule=gate.rule, parts=tuple(part for part, _ in _parts_of(gate)))
            for gate_id in gate_ids
            if gate_id not in self._mirrored
            for gate in (self._gates.gate(gate_id),)
        )
        return GateChange(departures=departures, arrivals=arrivals)

    def enact(self, change: GateChange, share: ShareTensor) -> None:
        """Give the followers the values; they have been told of the change."""
        for gate_id in change.departures:
            del self._mirrored[gate_id]
        for arrival in change.arrivals:
            tensors = [tensor for _, tensor in _parts_of(self._gates.gate(arrival.gate_id))]
            for places in _places_by_dtype(arrival.parts).values():
                share(torch.cat([tensors[place].reshape(-1) for place in places]))
            self._mirrored[arrival.gate_id] = None


class GateFollower:
    """The side that obeys.

    Args:
        gates: this process's; nobody else changes them.
        device: the model's.
    """

    def __init__(self, gates: LearnedGates, *, device: torch.device) -> None:
        self._gates = gates
        self._device = device

    def enact(self, change: GateChange, share: ShareTensor) -> None:
        """Take the values, and let go of what the leader has no longer."""
        for gate_id in change.departures:
            self._gates.drop(gate_id)
        for arrival in change.arrivals:
            tensors: dict[int, torch.Tensor] = {}
            for dtype, places in _places_by_dtype(arrival.parts).items():
                sizes = [math.prod(arrival.parts[place].shape) for place in places]
                values = torch.empty(sum(sizes), dtype=dtype, device=self._device)
                share(values)
                for place, part_values in zip(places, values.split(sizes), strict=True):
                    tensors[place] = part_values.view(arrival.parts[place].shape)
            self._gates.keep(arrival.gate_id, _gate_from(arrival, [tensors[place] for place in range(len(tensors))]))


def _parts_of(gate: LoadedGate) -> list[tuple[GatePart, torch.Tensor]]:
    """A gate's tensors, in an order that is the same whenever it is asked for."""
    found: list[tuple[GatePart, torch.Tensor]] = []
    for module_idx, tensors in gate.modules.items():
        named = [
            *((GateRole.GATE, adapter_id, tensor) for adapter_id, tensor in tensors.gates.items()),
            *((GateRole.BIAS, adapter_id, tensor) for adapter_id, tensor in tensors.biases.items()),
            (GateRole.ROUTER_A, "", tensors.router_a_GD),
            (GateRole.ROUTER_B, "", tensors.router_b_OG),
        ]
        for role, adapter_id, tensor in named:
            if tensor is not None:
                part = GatePart(
                    module_idx=module_idx,
                    role=role,
                    adapter_id=adapter_id,
                    shape=tuple(tensor.shape),
                    dtype=tensor.dtype,
                )
                found.append((part, tensor))
    return found


def _places_by_dtype(parts: Sequence[GatePart]) -> dict[torch.dtype, list[int]]:
    """Which parts travel together: one message for each type, in place of thousands of small ones."""
    places: dict[torch.dtype, list[int]] = {}
    for place, part in enumerate(parts):
        places.setdefault(part.dtype, []).append(place)
    return places


def _gate_from(arrival: GateArrival, tensors: Sequence[torch.Tensor]) -> LoadedGate:
    by_module: dict[int, dict[GateRole, dict[str, torch.Tensor]]] = {}
    for part, tensor in zip(arrival.parts, tensors, strict=True):
        by_module.setdefault(part.module_idx, {}).setdefault(part.role, {})[part.adapter_id] = tensor
    modules = {
        module_idx: GateTensors(
            gates=roles.get(GateRole.GATE, {}),
            biases=roles.get(GateRole.BIAS, {}),
            router_a_GD=roles.get(GateRole.ROUTER_A, {}).get(""),
            router_b_OG=roles.get(GateRole.ROUTER_B, {}).get(""),
        )
        for module_idx, roles in by_module.items()
    }
    return LoadedGate(
        rule=arrival.rule,
        modules=modules,
        adapter_ids=frozenset(part.adapter_id for part in arrival.parts if part.role is GateRole.GATE),
        num_bytes=sum(tensor.nbytes for tensor in tensors),
    )
