from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import RankOneComponents, RocBasis
from hilora.decomposition import decompose, delta_weight
from hilora.reference import reference_forward
from hilora.routing_plan import GateParameters, GateScope, RocBudget, RocScore, RoutingPlan
from hilora.token_gating import ModuleGate, active_rocs_mask, gate_rocs, module_gate
from tests.builders.adapters import DOWN_PROJ, random_adapter

quick = settings(deadline=None, max_examples=40)


@st.composite
def module_gates(draw: st.DrawFn) -> ModuleGate:
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    return ModuleGate(
        num_rocs=tuple(sizes),
        budgets=tuple(draw(st.integers(0, size)) for size in sizes),
        weights=tuple(draw(st.sampled_from([1.0, 0.25, 0.7])) for _ in sizes),
        eta=draw(st.sampled_from([1.0, 0.5])),
        score=draw(st.sampled_from(RocScore)),
        scope=draw(st.sampled_from(GateScope)),
    )


def components(gate: ModuleGate, *, seed: int, d: int = 5, o: int = 4) -> list[RankOneComponents]:
    generator = torch.Generator().manual_seed(seed)
    return [
        RankOneComponents(
            a_RD=torch.randn(size, d, generator=generator).double(),
            b_RO=torch.randn(size, o, generator=generator).double(),
        )
        for size in gate.num_rocs
    ]


def norms(candidates: list[RankOneComponents]) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.cat([rocs.b_RO for rocs in candidates]), dim=1)


class TestAgainstTheReference:
    @quick
    @given(gate=module_gates(), seed=st.integers(0, 10_000))
    def test_shrink_gate_expand_equals_the_loops(self, gate, seed):
        candidates = components(gate, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        x_TD = torch.randn(3, 5, generator=generator).double()
        w0_OD = torch.randn(4, 5, generator=generator).double()
        bias_O = torch.randn(4, generator=generator).double()
        a_RD, b_RO = (torch.cat([getattr(rocs, name) for rocs in candidates]) for name in ("a_RD", "b_RO"))
        h_TR = x_TD @ a_RD.T
        g_TR = gate_rocs(h_TR, gate=gate, b_norm_R=norms(candidates))
        y_TO = x_TD @ w0_OD.T + bias_O + (g_TR * h_TR) @ b_RO
        expected = reference_forward(
            x_TD,
            w0_OD=w0_OD,
            bias_O=bias_O,
            candidates=candidates,
            budgets=gate.budgets,
            weights=gate.weights,
            gate=GateParameters(score=gate.score, scope=gate.scope, eta=gate.eta),
        )
        torch.testing.assert_close(y_TO, expected)

    def test_without_tokens(self):
        gate = ModuleGate(num_rocs=(2,), budgets=(1,), weights=(1.0,))
        assert gate_rocs(torch.zeros(0, 2), gate=gate).shape == (0, 2)
        forward = reference_forward(
            torch.zeros(0, 5),
            w0_OD=torch.ones(4, 5),
            bias_O=None,
            candidates=components(gate, seed=0),
            budgets=(1,),
            weights=(1.0,),
            gate=GateParameters(),
        )
        assert forward.shape == (0, 4)


class TestBudgets:
    @quick
    @given(gate=module_gates(), seed=st.integers(0, 1000))
    def test_each_token_switches_on_exactly_its_budget(self, gate, seed):
        h_TR = torch.randn(4, sum(gate.num_rocs), generator=torch.Generator().manual_seed(seed))
        mask_TR = active_rocs_mask(h_TR, gate=gate, b_norm_R=torch.ones(h_TR.shape[1]))
        assert (mask_TR.sum(dim=1) == sum(gate.budgets)).all()
        if gate.scope is GateScope.PER_ADAPTER:
            for (start, end), budget in zip(gate.segments, gate.budgets, strict=True):
                assert (mask_TR[:, start:end].sum(dim=1) == budget).all()

    @pytest.mark.parametrize("scope", GateScope)
    def test_a_full_budget_is_the_sum_of_the_adapters(self, scope):
        plan = RoutingPlan(
            budgets=tuple(
                RocBudget(adapter_id=name, adapter_name=name, lora_rank=4, num_rocs=4) for name in ("one", "two")
            ),
            gate=GateParameters(scope=scope),
        )
        rocs = [decompose(random_adapter(seed=seed), basis=RocBasis.SVD).modules[DOWN_PROJ] for seed in (1, 2)]
        a_RD, b_RO = torch.cat([each.a_RD for each in rocs]), torch.cat([each.b_RO for each in rocs])
        x_TD = torch.randn(6, a_RD.shape[1], generator=torch.Generator().manual_seed(3))
        h_TR = x_TD @ a_RD.T
        y_TO = (gate_rocs(h_TR, gate=module_gate(plan, num_rocs=[4, 4])) * h_TR) @ b_RO
        torch.testing.assert_close(y_TO, x_TD @ (delta_weight(rocs[0]) + delta_weight(rocs[1])).T)

    @pytest.mark.parametrize("scope", GateScope)
    def test_a_zero_budget_leaves_the_base_untouched(self, scope):
        gate = ModuleGate(num_rocs=(3, 2), budgets=(0, 0), weights=(1.0, 1.0), scope=scope)
        g_TR = gate_rocs(torch.randn(5, 5), gate=gate)
        assert not g_TR.any()

    def test_equal_scores_go_to_the_lower_index(self):
        h_TR = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0]])
        per_adapter = ModuleGate(num_rocs=(3, 2), budgets=(2, 1), weights=(1.0, 1.0))
        assert active_rocs_mask(h_TR, gate=per_adapter).tolist() == [[True, True, False, True, False]]
        over_all = replace(per_adapter, scope=GateScope.GLOBAL)
        assert active_rocs_mask(h_TR, gate=over_all).tolist() == [[True, True, True, False, False]]

    def test_weights_decide_the_global_contest_only(self):
        h_TR = torch.tensor([[1.0, 0.9, 1.1, 1.2]])
        gate = ModuleGate(num_rocs=(2, 2), budgets=(1, 1), weights=(0.9, 0.1))
        assert active_rocs_mask(h_TR, gate=gate).tolist() == [[True, False, False, True]]
        over_all = replace(gate, scope=GateScope.GLOBAL)
        assert active_rocs_mask(h_TR, gate=over_all).tolist() == [[True, True, False, False]]
        torch.testing.assert_close(gate_rocs(h_TR, gate=over_all), torch.tensor([[0.9, 0.9, 0.0, 0.0]]))


class TestInvariances:
    @quick
    @given(gate=module_gates(), seed=st.integers(0, 1000))
    def test_the_order_of_the_components_changes_nothing(self, gate, seed):
        candidates = components(gate, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        shuffled = []
        for rocs in candidates:
            order = torch.randperm(rocs.num_rocs, generator=generator)
            shuffled.append(RankOneComponents(a_RD=rocs.a_RD[order], b_RO=rocs.b_RO[order]))
        x_TD = torch.randn(3, 5, generator=generator).double()
        first, second = (self._output(x_TD, gate, each) for each in (candidates, shuffled))
        torch.testing.assert_close(first, second)

    def test_rescaling_changes_the_activation_order_but_not_the_contribution_order(self):
        h_TR, b_norm_R = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 1.0])
        scale_R = torch.tensor([5.0, 1.0])
        chosen = {}
        for score in RocScore:
            gate = ModuleGate(num_rocs=(2,), budgets=(1,), weights=(1.0,), score=score)
            before = active_rocs_mask(h_TR, gate=gate, b_norm_R=b_norm_R)
            after = active_rocs_mask(h_TR * scale_R, gate=gate, b_norm_R=b_norm_R / scale_R)
            chosen[score] = (before.tolist(), after.tolist())
        assert chosen[RocScore.ACTIVATION] == ([[False, True]], [[True, False]])
        assert chosen[RocScore.CONTRIBUTION] == ([[True, False]], [[True, False]])

    @staticmethod
    def _output(x_TD, gate, candidates):
        a_RD, b_RO = (torch.cat([getattr(rocs, name) for rocs in candidates]) for name in ("a_RD", "b_RO"))
        h_TR = x_TD @ a_RD.T
        return (gate_rocs(h_TR, gate=gate, b_norm_R=norms(candidates)) * h_TR) @ b_RO


class TestMisuse:
    def test_budgets_beyond_the_module(self):
        with pytest.raises(ValueError, match="budgets"):
            ModuleGate(num_rocs=(2,), budgets=(3,), weights=(1.0,))

    def test_lists_of_unequal_length(self):
        with pytest.raises(ValueError, match="one entry per candidate"):
            ModuleGate(num_rocs=(2, 2), budgets=(1,), weights=(1.0,))

    def test_responses_of_another_width(self):
        with pytest.raises(ValueError, match="describes 2 ROCs"):
            gate_rocs(torch.ones(1, 3), gate=ModuleGate(num_rocs=(2,), budgets=(1,), weights=(1.0,)))

    def test_the_contribution_score_without_norms(self):
        gate = ModuleGate(num_rocs=(2,), budgets=(1,), weights=(1.0,), score=RocScore.CONTRIBUTION)
        with pytest.raises(ValueError, match="b_norm_R"):
            gate_rocs(torch.ones(1, 2), gate=gate)


class TestModuleBudgets:
    def test_a_module_of_another_rank_gets_its_share(self):
        budget = RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=8, num_rocs=3, weight=0.5)
        gate = module_gate(RoutingPlan(budgets=(budget, budget)), num_rocs=[4, 0])
        assert (gate.budgets, gate.weights) == ((2, 0), (0.5, 0.5))
