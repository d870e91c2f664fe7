"""Rows of adaptive plans through the step's own builder, against the definitions in loops."""

from __future__ import annotations

import weakref

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.adaptive_gating import exact
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.reference_adaptive import reference_adaptive_update
from hilora.routing_plan import GateRule, GateScope, RocBudget, RocScore, RoutingPlan
from hilora.token_gating import gate_rocs, module_gate
from services.worker.lora.gating import row_runs
from services.worker.lora.gating.adaptive_segment import AdaptiveSegment
from services.worker.lora.gating.batch_plan import StepRocsBuilder, decode_order
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.roc_arena import ModuleShape
from services.worker.lora.pool.roc_pool import RocKey, RocPool
from tests.builders.gates import (
    ADAPTIVE_RULES,
    InMemoryGateSource,
    in_svd_basis,
    make_adaptive_plan,
    make_gate,
    make_gate_parameters,
)
from tests.builders.models import make_adapter

_CPU = torch.device("cpu")
_SHAPES = {"q": (9, 7), "up": (9, 12), "down": (12, 9)}
_RANKS: dict[str, int | dict[str, int]] = {"a": 4, "b": 2, "c": {"q": 3, "down": 5}}
_LARGEST = {"a": 4, "b": 2, "c": 5}


class Stage:
    """A pool with three adapters in both bases, gates for all learned rules, and a builder of steps."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, gates: dict[str, LearnedGate] | None = None) -> None:
        modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
        self.dtype = dtype
        self.pool = RocPool(modules=modules, capacity_bytes=1 << 20, dtype=dtype, device=_CPU)
        self.adapters: dict[RocKey, DecomposedAdapter] = {}
        for idx, (name, rank) in enumerate(_RANKS.items()):
            trained = make_adapter(_SHAPES, rank=rank, seed=idx)
            self.add(RocKey(name, RocBasis.TRAINED), trained)
            self.add(RocKey(name, RocBasis.SVD), in_svd_basis(trained, dtype=exact(torch.zeros(0, dtype=dtype)).dtype))
        ranks = {
            name: {path: rocs.num_rocs for path, rocs in self.adapters[RocKey(name, RocBasis.SVD)].modules.items()}
            for name in _RANKS
        }
        learned = [rule for rule in GateRule if rule.is_learned]
        self.files = {
            make_gate_parameters(rule).gate_id or "": make_gate(rule, ranks=ranks, shapes=_SHAPES) for rule in learned
        }
        self.files.update(gates or {})
        self.gates = LearnedGates(
            modules=modules, source=InMemoryGateSource(self.files), capacity_bytes=1 << 20, dtype=dtype, device=_CPU
        )
        self.builder = StepRocsBuilder(self.pool, dtype=dtype, device=_CPU, gates=self.gates)

    def add(self, key: RocKey, adapter: DecomposedAdapter) -> None:
        assert self.pool.try_acquire([key], {key: self.pool.sizes_of(adapter, adapter_id=key.adapter_id)})
        self.pool.write(key, adapter)
        self.pool.commit(key)
        self.adapters[key] = adapter

    def plan(self, rule: GateRule, names: str = "abc", **changes) -> RoutingPlan:
        plan = make_adaptive_plan(rule, [(name, _LARGEST[name], 0.5 + _LARGEST[name] / 8) for name in names], **changes)
        self.gates.acquire(plan)
        return plan

    def inputs(self, num_tokens: int, module_path: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(num_tokens)
        return torch.randn(num_tokens, _SHAPES[module_path][0], generator=generator, dtype=torch.float64).to(self.dtype)

    def reference(self, plan: RoutingPlan, module_path: str, x_TD: torch.Tensor) -> torch.Tensor:
        """What the plan adds to a layer, in float64."""
        of_plan = {budget: self.adapters[RocKey(budget.adapter_id, plan.gate.basis)].modules for budget in plan.budgets}
        there = {budget: modules[module_path] for budget, modules in of_plan.items() if module_path in modules}
        if not there:
            return torch.zeros(len(x_TD), _SHAPES[module_path][1], dtype=torch.float64)
        learned = None
        if plan.gate.gate_id is not None:
            learned = self.files[plan.gate.gate_id].modules.get(module_path)
        candidates = [
            type(rocs)(a_RD=rocs.a_RD.to(self.dtype).double(), b_RO=rocs.b_RO.to(self.dtype).double())
            for rocs in there.values()
        ]
        return reference_adaptive_update(
            x_TD.double(),
            candidates=candidates,
            adapter_ids=[budget.adapter_id for budget in there],
            weights=[budget.weight for budget in there],
            gate=plan.gate,
            learned=learned,
        )


def _added(stage: Stage, step, module_path: str, x_TD: torch.Tensor) -> torch.Tensor:
    y_TO = torch.zeros(len(x_TD), _SHAPES[module_path][1], dtype=stage.dtype)
    step.add(list(_SHAPES).index(module_path), x_TD, y_TO)
    return y_TO


class TestAgainstTheReference:
    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    @pytest.mark.parametrize("changes", [{}, {"top_k": 2, "temperature": 0.6, "eta": 0.75}], ids=["plain", "changed"])
    @pytest.mark.parametrize("names", ["abc", "ca", "b"])
    def test_decode_rows_and_chunks(self, rule, changes, names):
        stage = Stage()
        plan = stage.plan(rule, names, **changes)
        step = stage.builder.build(decode_plans=[plan, plan], chunk_plans=[(slice(2, 8), None, plan)])
        assert step is not None
        for path in _SHAPES:
            x_TD = stage.inputs(8, path)
            torch.testing.assert_close(
                _added(stage, step, path, x_TD), stage.reference(plan, path, x_TD), rtol=1e-9, atol=1e-9
            )

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.08)])
    def test_other_types(self, rule, dtype, tolerance):
        stage = Stage(dtype)
        # A soft rule: hard choices may fall differently where two scores round to one value.
        plan = stage.plan(rule, "abc" if rule is not GateRule.SEQR else "b", temperature=4.0)
        step = stage.builder.build(decode_plans=[plan], chunk_plans=[])
        assert step is not None
        for path in _SHAPES:
            x_TD = stage.inputs(1, path)
            expected = stage.reference(plan, path, x_TD)
            error = (_added(stage, step, path, x_TD).double() - expected).abs().max()
            assert error <= tolerance * expected.abs().max().clamp(min=1e-9)

    @pytest.mark.parametrize("scope", GateScope)
    @pytest.mark.parametrize("score", RocScore)
    def test_budgets_that_are_not_full_still_hold(self, scope, score):
        stage = Stage()
        full = stage.plan(GateRule.SPECTR, "ab", scope=scope, score=score)
        half = RoutingPlan(
            budgets=tuple(
                RocBudget(adapter_id=name, adapter_name=name, lora_rank=rank, num_rocs=rank // 2, weight=weight)
                for name, rank, weight in [("a", 4, 1.0), ("b", 2, 0.6)]
            ),
            gate=full.gate,
        )
        rocs = [stage.adapters[RocKey(name, RocBasis.SVD)].modules["q"] for name in "ab"]
        a_RD, b_RO = (torch.cat([getattr(each, name) for each in rocs]).double() for name in ("a_RD", "b_RO"))
        x_TD = stage.inputs(5, "q")
        h_TR = x_TD @ a_RD.T
        constants_TR = gate_rocs(
            h_TR, gate=module_gate(half, num_rocs=[4, 2]), b_norm_R=torch.linalg.vector_norm(b_RO, dim=1)
        )
        norms = [torch.linalg.vector_norm(h_TR[:, part], dim=1) for part in (slice(0, 4), slice(4, 6))]
        alphas_TL = torch.softmax(torch.stack(norms, dim=1), dim=1)
        expected = (constants_TR * alphas_TL[:, [0, 0, 0, 0, 1, 1]] * h_TR) @ b_RO
        step = stage.builder.build(decode_plans=[], chunk_plans=[(slice(0, 5), None, half)])
        torch.testing.assert_close(_added(stage, step, "q", x_TD), expected)


class TestMixedSteps:
    def test_each_row_gets_what_it_gets_alone(self):
        stage = Stage()
        plans = [stage.plan(rule) for rule in ADAPTIVE_RULES]
        rocs = RoutingPlan(
            budgets=tuple(
                RocBudget(adapter_id=name, adapter_name=name, lora_rank=rank, num_rocs=1)
                for name, rank in _LARGEST.items()
            )
        )
        decodes = sorted([*plans, rocs, *plans], key=decode_order)
        first = len(decodes)
        chunks = [
            (slice(first, first + 3), None, plans[0]),
            (slice(first + 3, first + 5), None, RoutingPlan()),
            (slice(first + 5, first + 9), None, plans[5]),
        ]
        step = stage.builder.build(decode_plans=decodes, chunk_plans=chunks)
        x_TD = stage.inputs(first + 10, "q")
        together = _added(stage, step, "q", x_TD)
        for row, plan in enumerate(decodes):
            alone = stage.builder.build(decode_plans=[plan], chunk_plans=[])
            torch.testing.assert_close(_added(stage, alone, "q", x_TD[row : row + 1])[0], together[row])
        for rows, _, plan in chunks:
            expected = torch.zeros(rows.stop - rows.start, 7).double()
            if not plan.is_base_only:
                expected = stage.reference(plan, "q", x_TD[rows])
            torch.testing.assert_close(together[rows], expected)
        assert not together[-1].any()

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_a_selection_of_the_rows(self, rule):
        stage = Stage()
        plan = stage.plan(rule)
        step = stage.builder.build(decode_plans=[], chunk_plans=[(slice(1, 6), None, plan)])
        assert step is not None
        tokens = torch.tensor([3, 0, 5, 3, 7])
        x_KD = stage.inputs(5, "q")
        y_KO = torch.zeros(5, 7).double()
        step.add(0, x_KD, y_KO, token_idx_T=tokens)
        expected = stage.reference(plan, "q", x_KD)
        expected[[1, 4]] = 0.0
        torch.testing.assert_close(y_KO, expected)

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_token_ids_are_vectors_with_a_single_one(self, rule):
        stage = Stage()
        plan = stage.plan(rule)
        step = stage.builder.build(decode_plans=[], chunk_plans=[(slice(0, 4), None, plan)])
        assert step is not None
        token_ids = torch.tensor([0, 3, 8, 3])
        y_TO = torch.zeros(4, 7).double()
        step.add_embedding(0, token_ids, y_TO)
        one_hot = torch.nn.functional.one_hot(token_ids, 9).double()
        torch.testing.assert_close(y_TO, stage.reference(plan, "q", one_hot))


class TestSharing:
    def _segments(self, stage: Stage, decodes: list[RoutingPlan], chunks=()) -> list[tuple[int, int, int]]:
        """Rows and number of plans of each segment."""
        step = stage.builder.build(decode_plans=sorted(decodes, key=decode_order), chunk_plans=list(chunks))
        assert step is not None
        assert all(isinstance(segment, AdaptiveSegment) for segment in step._token_segments)
        return [(segment.rows.start, segment.rows.stop, segment.num_plans) for segment in step._token_segments]

    def test_plans_of_one_rule_are_one_segment_whatever_they_say(self):
        stage = Stage()
        arrows = [stage.plan(GateRule.ARROW, names) for names in ("a", "bc", "abc")]
        warm = stage.plan(GateRule.ARROW, "abc", temperature=2.0, top_k=1)
        spectr = stage.plan(GateRule.SPECTR)
        assert self._segments(stage, [spectr, *arrows, spectr, warm]) == [(0, 4, 4), (4, 6, 1)]

    def test_learned_gates_are_kept_apart(self):
        router = Stage().files[make_gate_parameters(GateRule.RAMOLE).gate_id or ""]
        stage = Stage(gates={"other@1": router})
        plans = [stage.plan(GateRule.RAMOLE), stage.plan(GateRule.RAMOLE, gate_id="other@1")]
        assert [num_plans for *_, num_plans in self._segments(stage, plans)] == [1, 1]

    def test_long_prompts_do_not_pay_for_one_another(self, monkeypatch):
        monkeypatch.setattr(row_runs, "MAX_SHARED_PRODUCTS", 60)
        stage = Stage()
        first, second = stage.plan(GateRule.ARROW, "a"), stage.plan(GateRule.ARROW, "b")
        chunks = [(slice(2, 8), None, first), (slice(8, 50), None, second), (slice(50, 90), None, second)]
        # Six components for ten rows are enough; a plan of its own may have as many rows as it likes.
        assert self._segments(stage, [first, second], chunks) == [(0, 8, 2), (8, 90, 1)]

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_what_differs_between_plans_is_each_row_s_own(self, rule):
        stage = Stage()
        plans = [
            stage.plan(rule, "abc", temperature=0.5),
            stage.plan(rule, "ca", top_k=1),
            stage.plan(rule, "b", eta=0.25),
            stage.plan(rule, "c", top_k=3, temperature=3.0),
            stage.plan(rule, "bca", top_k=2),
        ]
        decodes = sorted([*plans, plans[0], plans[3]], key=decode_order)
        assert [rows[:2] for rows in self._segments(stage, decodes)] == [(0, 7)]
        step = stage.builder.build(decode_plans=decodes, chunk_plans=[])
        for path in _SHAPES:
            x_TD = stage.inputs(7, path)
            expected = [stage.reference(plan, path, x_TD[row : row + 1]) for row, plan in enumerate(decodes)]
            torch.testing.assert_close(
                _added(stage, step, path, x_TD), torch.cat(expected), rtol=1e-9, atol=1e-9, msg=path
            )
        tokens = torch.tensor([6, 0, 0, 3])
        x_KD, y_KO = stage.inputs(4, "down"), torch.zeros(4, 9).double()
        step.add(2, x_KD, y_KO, token_idx_T=tokens)
        expected = [stage.reference(decodes[token], "down", x_KD[[row]]) for row, token in enumerate(tokens.tolist())]
        torch.testing.assert_close(y_KO, torch.cat(expected))
        token_ids, y_TO = torch.tensor([0, 3, 8, 3, 1, 2, 5]), torch.zeros(7, 7).double()
        step.add_embedding(0, token_ids, y_TO)
        one_hot = torch.nn.functional.one_hot(token_ids, 9).double()
        expected = [stage.reference(plan, "q", one_hot[[row]]) for row, plan in enumerate(decodes)]
        torch.testing.assert_close(y_TO, torch.cat(expected))

    def test_budgets_scopes_and_scores_of_plans_that_share(self):
        stage = Stage()

        def plan(names: str, num_rocs: int, **changes) -> RoutingPlan:
            full = stage.plan(GateRule.SPECTR, names, **changes)
            budgets = [
                RocBudget(
                    adapter_id=name,
                    adapter_name=name,
                    lora_rank=_LARGEST[name],
                    num_rocs=min(num_rocs, _LARGEST[name]),
                    weight=0.5 + place,
                )
                for place, name in enumerate(names)
            ]
            return RoutingPlan(budgets=tuple(budgets), gate=full.gate)

        plans = [
            plan("abc", 2),
            plan("ca", 2, scope=GateScope.GLOBAL),
            plan("cb", 1, scope=GateScope.GLOBAL, score=RocScore.CONTRIBUTION),
            plan("ab", 1, score=RocScore.CONTRIBUTION),
            plan("abc", 9),
        ]
        decodes = sorted(plans, key=decode_order)
        assert self._segments(stage, decodes) == [(0, 5, 5)]
        together = stage.builder.build(decode_plans=decodes, chunk_plans=[])
        for path in _SHAPES:
            x_TD = stage.inputs(5, path)
            found = _added(stage, together, path, x_TD)
            for row, each in enumerate(decodes):
                alone = stage.builder.build(decode_plans=[each], chunk_plans=[])
                torch.testing.assert_close(_added(stage, alone, path, x_TD[[row]])[0], found[row])

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_what_is_not_finite_stays_with_its_own_plan(self, rule):
        stage = Stage()
        plans = sorted([stage.plan(rule, "a"), stage.plan(rule, "b")], key=decode_order)
        step = stage.builder.build(decode_plans=plans, chunk_plans=[])
        x_TD = stage.inputs(2, "q")
        expected = _added(stage, step, "q", x_TD)
        arena = stage.pool.arena(0)
        rows = stage.pool.rows(RocKey("a", plans[0].gate.basis)).of_module(0)
        arena.a_ND[int(rows[0])] = float("nan")
        arena.b_NO[int(rows[1])] = float("inf")
        found = _added(stage, stage.builder.build(decode_plans=plans, chunk_plans=[]), "q", x_TD)
        of_b = [plan.budgets[0].adapter_id for plan in plans].index("b")
        assert torch.equal(found[of_b], expected[of_b])
        assert not found[1 - of_b].isfinite().all()


class TestWhatIsKept:
    def test_a_plans_layers_are_made_once(self):
        stage = Stage()
        plan = stage.plan(GateRule.RAMOLE)
        first, second = (stage.builder.build(decode_plans=[plan], chunk_plans=[]) for _ in range(2))
        assert first.only_segment() is second.only_segment()
        assert first.only_segment()._layer(0) is second.only_segment()._layer(0)

    def test_an_adapter_that_moved_is_looked_up_anew(self):
        stage = Stage()
        plan = stage.plan(GateRule.SPECTR, "ab")
        before = stage.builder.build(decode_plans=[plan], chunk_plans=[]).only_segment()
        key = RocKey("b", RocBasis.SVD)
        stage.pool.release([key])
        stage.pool.retire("b")
        stage.pool.readmit("b")
        stage.add(RocKey("filler", RocBasis.SVD), stage.adapters[key])
        stage.add(key, stage.adapters[key])
        step = stage.builder.build(decode_plans=[plan], chunk_plans=[])
        assert step.only_segment() is not before
        x_TD = stage.inputs(1, "q")
        torch.testing.assert_close(_added(stage, step, "q", x_TD), stage.reference(plan, "q", x_TD))

    def test_a_gate_that_left_the_device_is_let_go(self):
        stage = Stage()
        plan = stage.plan(GateRule.PHATGOOSE)
        gate = weakref.ref(stage.gates.of(plan).modules[0].gates["a"])
        step = stage.builder.build(decode_plans=[plan], chunk_plans=[])
        _added(stage, step, "q", stage.inputs(1, "q"))
        del step
        stage.gates.release(plan)
        stage.gates._make_room("another", stage.gates._capacity_bytes)
        other = stage.plan(GateRule.ARROW)
        stage.builder.build(decode_plans=[other], chunk_plans=[])
        assert gate() is None


class TestGatesThatDoNotFit:
    def _error(self, rule: GateRule, modules: dict[str, GateTensors], names: str) -> InvalidInput:
        stage = Stage(gates={"odd": LearnedGate(rule=rule, modules=modules)})
        plan = stage.plan(rule, names, gate_id="odd")
        # Before the forward pass, in whose middle processes that share a model could not go back.
        with pytest.raises(InvalidInput) as caught:
            stage.builder.build(decode_plans=[plan], chunk_plans=[])
        assert caught.value.code == "gate_shape_mismatch"
        return caught.value

    def test_a_layer_without_a_router(self):
        router = GateTensors(router_a_GD=torch.ones(2, 9), router_b_OG=torch.ones(12, 2))
        assert "router" in self._error(GateRule.RAMOLE, {"up": router}, "a").message

    def test_a_layer_without_the_adapters_vector(self):
        modules = {"q": GateTensors(gates={"a": torch.ones(9)}), "up": GateTensors(gates={"b": torch.ones(9)})}
        assert "b changes" in self._error(GateRule.PHATGOOSE, modules, "ab").message

    def test_rows_of_another_rank(self):
        modules = {"q": GateTensors(gates={"a": torch.ones(3, 9)})}
        assert "3 rows for 4" in self._error(GateRule.SMORA, modules, "a").message
