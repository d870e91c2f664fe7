"""Learned gates on the device, by id, for as long as a request uses them and while there is room.

Gates are small next to adapters: a vector, or a row per component, for each adapter and layer, or one router per layer.
They come from a `GateSource`, in the thread that submits a request and never in the step loop's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import torch

from hilora.adaptive_gating import standardized
from hilora.errors import Exhausted, InvalidInput, UnknownAdapter
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.routing_plan import GateRule, RoutingPlan
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.ports import GateSource


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedGate:
    """A gate on the device. PHATGOOSE's vectors are standardised; biases keep their precision."""

    rule: GateRule
    modules: Mapping[int, GateTensors]
    """By module index."""
    adapter_ids: frozenset[str]
    """Adapters it has vectors or matrices for; none under RAMoLE, which needs none."""
    num_bytes: int


@dataclass(kw_only=True, slots=True)
class _Entry:
    gate: LoadedGate
    num_references: int = 0


class LearnedGates:
    """The gates of one model.

    Args:
        modules: the linear layers of the model; their order gives the module indices.
        source: where gates come from; None: there are none.
        capacity_bytes: device memory for gates. The least recently used one that no request uses leaves first.
        dtype: the model's.
        device: the model's.
    """

    def __init__(
        self,
        *,
        modules: Sequence[ModuleShape],
        source: GateSource | None,
        capacity_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._modules = {shape.module_path: (idx, shape) for idx, shape in enumerate(modules)}
        self._source = source
        self._capacity_bytes = capacity_bytes
        self._dtype = dtype
        self._device = device
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._used_bytes = 0
        self._num_evictions = 0
        self._lock = threading.Lock()
        # Of gates that somebody fetches: two requests do not fetch the same one, and nobody waits for another one.
        self._fetch_locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @property
    def used_bytes(self) -> int:
        """Bytes of the gates on the device."""
        return self._used_bytes

    @property
    def num_evictions(self) -> int:
        """Gates that have left the device so far."""
        return self._num_evictions

    def is_loaded(self, plan: RoutingPlan) -> bool:
        """Whether a plan's gate is on the device, or the plan needs none."""
        gate_id = gate_id_of(plan)
        with self._lock:
            return gate_id is None or gate_id in self._entries

    def load(self, plan: RoutingPlan) -> None:
        """Bring a plan's gate to the device if it has one that is not there. May block; from any thread.

        Raises:
            UnknownAdapter: `unknown_gate`.
            InvalidInput: `invalid_gate`, `gate_shape_mismatch`, `gate_rule_mismatch`, `gate_lacks_adapter`,
                `gate_too_large`.
            Exhausted: `gate_memory_full`.
        """
        self.acquire(plan)
        self.release(plan)

    def acquire(self, plan: RoutingPlan) -> None:
        """The same, and keep the gate there until `release`. Plans without a gate need nothing."""
        gate_id = gate_id_of(plan)
        if gate_id is None or self._refer(gate_id, plan):
            return
        with self._lock:
            fetch_lock = self._fetch_locks.setdefault(gate_id, threading.Lock())
        with fetch_lock:
            if self._refer(gate_id, plan):
                return
            loaded = self._loaded(gate_id)
            with self._lock:
                _check_plan(gate_id, loaded, plan)
                self._make_room(gate_id, loaded.num_bytes)
                self._entries[gate_id] = _Entry(gate=loaded, num_references=1)
                self._used_bytes += loaded.num_bytes

    def release(self, plan: RoutingPlan) -> None:
        """Give back what `acquire` took."""
        gate_id = gate_id_of(plan)
        if gate_id is None:
            return
        with self._lock:
            entry = self._entries[gate_id]
            assert entry.num_references > 0, f"{gate_id} was released more often than acquired"
            entry.num_references -= 1

    def of(self, plan: RoutingPlan) -> LoadedGate:
        """The gate of a plan that has acquired it."""
        gate_id = gate_id_of(plan)
        assert gate_id is not None, "the plan has no gate"
        return self.gate(gate_id)

    def gate(self, gate_id: str) -> LoadedGate:
        """A gate that is on the device, and stays there because somebody has acquired it."""
        with self._lock:
            return self._entries[gate_id].gate

    def is_known(self, gate_id: str) -> bool:
        """Whether a gate is on the device."""
        with self._lock:
            return gate_id in self._entries

    def keep(self, gate_id: str, gate: LoadedGate) -> None:
        """Hold a gate that another process has fetched and made ready, until `drop`. AssertionError without room."""
        with self._lock:
            assert gate_id not in self._entries, f"{gate_id} is there already"
            assert self._used_bytes + gate.num_bytes <= self._capacity_bytes, f"no room for {gate_id}"
            self._entries[gate_id] = _Entry(gate=gate)
            self._used_bytes += gate.num_bytes

    def drop(self, gate_id: str) -> None:
        """Let go of what `keep` has held."""
        with self._lock:
            self._used_bytes -= self._entries.pop(gate_id).gate.num_bytes
            self._num_evictions += 1

    def check_integrity(self, plans: Sequence[RoutingPlan]) -> None:
        """AssertionError unless the reference counts are exactly those of the requests' plans, and the bytes add up."""
        expected: dict[str, int] = {}
        for plan in plans:
            if (gate_id := gate_id_of(plan)) is not None:
                expected[gate_id] = expected.get(gate_id, 0) + 1
        with self._lock:
            found = {gate_id: entry.num_references for gate_id, entry in self._entries.items() if entry.num_references}
            assert found == expected, f"gates have the references {found}, not {expected}"
            num_bytes = sum(entry.gate.num_bytes for entry in self._entries.values())
            assert num_bytes == self._used_bytes <= self._capacity_bytes, "gate bytes out of order"

    def _refer(self, gate_id: str, plan: RoutingPlan) -> bool:
        with self._lock:
            entry = self._entries.get(gate_id)
            if entry is None:
                return False
            _check_plan(gate_id, entry.gate, plan)
            self._entries.move_to_end(gate_id)
            entry.num_references += 1
            return True

    def _make_room(self, gate_id: str, num_bytes: int) -> None:
        if num_bytes > self._capacity_bytes:
            raise InvalidInput(
                f"Gate {gate_id} needs {num_bytes} bytes; this worker has {self._capacity_bytes} for gates.",
                code="gate_too_large",
                remedy="Raise HILORA_WORKER_GATE_BYTES.",
                place="plan.gate.gate_id",
            )
        for other in [other for other, entry in self._entries.items() if entry.num_references == 0]:
            if self._used_bytes + num_bytes <= self._capacity_bytes:
                break
            self._used_bytes -= self._entries.pop(other).gate.num_bytes
            self._num_evictions += 1
        if self._used_bytes + num_bytes > self._capacity_bytes:
            raise Exhausted(
                f"Gate {gate_id} has no room while running requests use others.",
                code="gate_memory_full",
                remedy="Try again shortly, or raise HILORA_WORKER_GATE_BYTES.",
                place="plan.gate.gate_id",
            )

    def _loaded(self, gate_id: str) -> LoadedGate:
        if self._source is None:
            raise UnknownAdapter(
                f"There is no gate {gate_id}: this worker has no folder of gates.",
                code="unknown_gate",
                remedy="Set HILORA_WORKER_GATES_DIR.",
                place="plan.gate.gate_id",
            )
        gate = self._source.fetch(gate_id)
        modules: dict[int, GateTensors] = {}
        for module_path, tensors in gate.modules.items():
            module_idx, shape = self._modules.get(module_path, (-1, None))
            if shape is None:
                raise _mismatch(f"Gate {gate_id} is for {module_path}, which the base model does not have.")
            _check_shapes(gate_id, gate.rule, shape, tensors)
            modules[module_idx] = self._placed(gate.rule, tensors)
        return LoadedGate(
            rule=gate.rule,
            modules=modules,
            adapter_ids=_adapter_ids_of(gate),
            num_bytes=sum(map(_bytes_of, modules.values())),
        )

    def _placed(self, rule: GateRule, tensors: GateTensors) -> GateTensors:
        gates = dict(tensors.gates)
        if rule is GateRule.PHATGOOSE:
            gates = {adapter_id: standardized(vector_D.double()) for adapter_id, vector_D in gates.items()}
        routers = (tensors.router_a_GD, tensors.router_b_OG)
        router_a_GD, router_b_OG = (None if router is None else self._on_device(router) for router in routers)
        return replace(
            tensors,
            gates={adapter_id: self._on_device(gate) for adapter_id, gate in gates.items()},
            biases={
                adapter_id: bias_R.to(self._device, torch.float32) for adapter_id, bias_R in tensors.biases.items()
            },
            router_a_GD=router_a_GD,
            router_b_OG=router_b_OG,
        )

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype)


def gate_id_of(plan: RoutingPlan) -> str | None:
    """The learned gate that a plan needs; None if it needs none."""
    return None if plan.is_base_only else plan.gate.gate_id


def _tensors_of(tensors: GateTensors) -> list[torch.Tensor]:
    routers = [router for router in (tensors.router_a_GD, tensors.router_b_OG) if router is not None]
    return [*tensors.gates.values(), *tensors.biases.values(), *routers]


def _bytes_of(tensors: GateTensors) -> int:
    return sum(tensor.nbytes for tensor in _tensors_of(tensors))


def _adapter_ids_of(gate: LearnedGate) -> frozenset[str]:
    return frozenset(adapter_id for tensors in gate.modules.values() for adapter_id in tensors.gates)


def _check_plan(gate_id: str, gate: LoadedGate, plan: RoutingPlan) -> None:
    if gate.rule is not plan.gate.rule:
        raise InvalidInput(
            f"Gate {gate_id} is one of rule {gate.rule}; the plan's rule is {plan.gate.rule}.",
            code="gate_rule_mismatch",
            remedy="Name a gate of the plan's rule.",
            place="plan.gate.gate_id",
        )
    if gate.rule is GateRule.RAMOLE:
        return
    for budget in plan.budgets:
        if budget.num_rocs > 0 and budget.adapter_id not in gate.adapter_ids:
            raise InvalidInput(
                f"Gate {gate_id} has nothing for {budget.adapter_id}.",
                code="gate_lacks_adapter",
                remedy="Train a gate with this version of the adapter, or leave the adapter out.",
                place="plan.gate.gate_id",
            )


def _check_shapes(gate_id: str, rule: GateRule, shape: ModuleShape, tensors: GateTensors) -> None:
    fits = {gate.shape[-1] == shape.in_features for gate in tensors.gates.values()}
    if rule is GateRule.RAMOLE:
        assert tensors.router_a_GD is not None, "a RAMoLE gate has a router"
        assert tensors.router_b_OG is not None, "a RAMoLE gate has a router"
        fits = {tensors.router_a_GD.shape[1] == shape.in_features, tensors.router_b_OG.shape[0] == shape.out_features}
    if not all(fits):
        raise _mismatch(
            f"Gate {gate_id} has tensors for {shape.module_path} that do not fit a layer of {shape.in_features} inputs "
            f"and {shape.out_features} outputs."
        )


def _mismatch(message: str) -> InvalidInput:
    return InvalidInput(
        message,
        code="gate_shape_mismatch",
        remedy="Name a gate that was trained with the base model and the adapter versions that are served here.",
        place="plan.gate.gate_id",
    )
