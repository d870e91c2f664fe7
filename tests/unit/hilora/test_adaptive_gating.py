from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import RankOneComponents
from hilora.adaptive_gating import (
    arrow_scores,
    best_factors,
    deviations,
    exact,
    output_norms,
    phatgoose_scores,
    ramole_keys,
    ramole_scores,
    softmax_factors,
    standardized,
)
from hilora.learned_gate import GateTensors
from hilora.reference_adaptive import reference_adaptive_update, reference_alphas
from hilora.routing_plan import GateParameters, GateRule
from tests.builders.gates import ADAPTIVE_RULES, in_svd_basis, make_gate_parameters, make_gate_tensors
from tests.builders.models import make_adapter

quick = settings(deadline=None, max_examples=25)
_D, _O = 7, 6
_BY_ADAPTER = [rule for rule in ADAPTIVE_RULES if rule is not GateRule.SMORA]


def singular_components(rank: int, *, seed: int) -> RankOneComponents:
    """A random update in its SVD basis, in float64."""
    return in_svd_basis(make_adapter({"q": (_D, _O)}, rank=rank, seed=seed, scale=1.0)).modules["q"]


class Case:
    """Candidates, tokens and a learned gate for one rule."""

    def __init__(self, rule: GateRule, ranks: list[int], *, seed: int, **gate: object) -> None:
        self.gate: GateParameters = make_gate_parameters(rule, **gate)
        self.candidates = [singular_components(rank, seed=97 * seed + idx) for idx, rank in enumerate(ranks)]
        self.adapter_ids = [f"a{idx}" for idx in range(len(ranks))]
        self.weights = [1.0, 0.5, 2.0, 0.25][: len(ranks)]
        self.learned: GateTensors | None = None
        if rule.is_learned:
            sizes = dict(zip(self.adapter_ids, ranks, strict=True))
            self.learned = make_gate_tensors(rule, num_rocs=sizes, in_features=_D, out_features=_O, seed=seed)
        self.x_TD = torch.randn(4, _D, generator=torch.Generator().manual_seed(seed + 1)).double()

    def permuted(self, order: list[int]) -> Case:
        other = object.__new__(Case)
        vars(other).update(vars(self))
        other.candidates = [self.candidates[idx] for idx in order]
        other.adapter_ids = [self.adapter_ids[idx] for idx in order]
        other.weights = [self.weights[idx] for idx in order]
        return other

    @property
    def members_RL(self) -> torch.Tensor:
        return torch.block_diag(*(torch.ones(rocs.num_rocs, 1) for rocs in self.candidates)).double()

    def slots(self, values_TR: torch.Tensor) -> torch.Tensor:
        """By adapter, with zeros behind those that have fewer than the largest."""
        parts = values_TR.split([rocs.num_rocs for rocs in self.candidates], dim=1)
        largest = max(part.shape[1] for part in parts)
        return torch.stack([torch.nn.functional.pad(part, (0, largest - part.shape[1])) for part in parts], dim=1)

    def factors(self) -> torch.Tensor:
        """`[T, R]`, put together from the functions as a layer does."""
        a_RD, b_RO = (torch.cat([getattr(rocs, name) for rocs in self.candidates]) for name in ("a_RD", "b_RO"))
        h_TR = self.x_TD @ a_RD.T
        h_TLS = self.slots(h_TR)
        gate, learned, members_RL = self.gate, self.learned, self.members_RL
        first_L = torch.tensor([int(members_RL[:, idx].argmax()) for idx in range(len(self.candidates))])
        if gate.rule is GateRule.SMORA:
            assert learned is not None
            scores_TR = self.x_TD @ torch.cat([learned.gates[name] for name in self.adapter_ids]).T
            biases_R = torch.cat(
                [learned.biases.get(name, torch.zeros(len(learned.gates[name]))) for name in self.adapter_ids]
            )
            return softmax_factors(
                scores_TR, temperature=gate.temperature, top_k=gate.top_k, contest_TN=scores_TR + biases_R
            )
        match gate.rule:
            case GateRule.ARROW:
                norms_L = torch.linalg.vector_norm(a_RD[first_L], dim=1)
                scores_TL = arrow_scores(h_TLS[:, :, 0], first_norms_TL=norms_L)
            case GateRule.PHATGOOSE:
                assert learned is not None
                vectors_LD = standardized(torch.stack([learned.gates[name] for name in self.adapter_ids]))
                scores_TL = phatgoose_scores(
                    self.x_TD @ vectors_LD.T, deviations_T=deviations(self.x_TD), num_features=_D
                )
            case GateRule.RAMOLE:
                assert learned is not None
                assert learned.router_a_GD is not None
                assert learned.router_b_OG is not None
                keys_RG = ramole_keys(b_RO, learned.router_b_OG)
                products_TLS = self.slots(self.x_TD @ learned.router_a_GD.T @ keys_RG.T)
                scores_TL = ramole_scores(products_TLS, h_TLS, router_rank=len(learned.router_a_GD))
            case _:
                scores_TL = output_norms(h_TLS)
        if gate.rule is GateRule.SEQR:
            alphas_TL = best_factors(scores_TL)
        else:
            alphas_TL = softmax_factors(scores_TL, temperature=gate.temperature, top_k=gate.top_k)
        return alphas_TL @ members_RL.T

    def update(self) -> torch.Tensor:
        a_RD, b_RO = (torch.cat([getattr(rocs, name) for rocs in self.candidates]) for name in ("a_RD", "b_RO"))
        weights_R = self.members_RL @ torch.tensor(self.weights).double()
        return (self.factors() * (self.x_TD @ a_RD.T) * weights_R * self.gate.eta) @ b_RO

    def reference(self) -> torch.Tensor:
        return reference_adaptive_update(
            self.x_TD,
            candidates=self.candidates,
            adapter_ids=self.adapter_ids,
            weights=self.weights,
            gate=self.gate,
            learned=self.learned,
        )


class TestAgainstTheReference:
    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    @quick
    @given(
        ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        top_k=st.integers(0, 5),
        temperature=st.sampled_from([0.3, 1.0, 4.0]),
        seed=st.integers(0, 1000),
    )
    def test_every_rule_equals_its_definition_in_loops(self, rule, ranks, top_k, temperature, seed):
        case = Case(rule, ranks, seed=seed, top_k=top_k, temperature=temperature, eta=0.75)
        torch.testing.assert_close(case.update(), case.reference(), rtol=1e-9, atol=1e-9)


class TestWhatMustBeEqual:
    @pytest.mark.parametrize("rule", _BY_ADAPTER)
    def test_one_adapter_is_that_adapter(self, rule):
        case = Case(rule, [3], seed=5)
        update_OD = case.candidates[0].b_RO.T @ case.candidates[0].a_RD
        torch.testing.assert_close(case.update(), case.x_TD @ update_OD.T)

    @pytest.mark.parametrize("rule", _BY_ADAPTER)
    def test_equal_adapters_are_one(self, rule):
        case = Case(rule, [3, 3, 3], seed=6)
        case.candidates = case.candidates[:1] * 3
        case.weights = [1.0] * 3
        if rule is GateRule.PHATGOOSE:
            assert case.learned is not None
            case.learned = GateTensors(gates=dict.fromkeys(case.adapter_ids, case.learned.gates["a0"]))
        update_OD = case.candidates[0].b_RO.T @ case.candidates[0].a_RD
        torch.testing.assert_close(case.update(), case.x_TD @ update_OD.T)

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    @quick
    @given(seed=st.integers(0, 1000), order=st.permutations(range(4)), top_k=st.integers(0, 4))
    def test_the_order_of_the_adapters_changes_nothing(self, rule, seed, order, top_k):
        case = Case(rule, [2, 3, 1, 2], seed=seed, top_k=top_k)
        torch.testing.assert_close(case.permuted(list(order)).update(), case.update())

    def test_in_the_svd_basis_responses_are_as_long_as_the_output(self):
        case = Case(GateRule.SPECTR, [3], seed=1)
        rocs = case.candidates[0]
        h_TR = case.x_TD @ rocs.a_RD.T
        lengths_T = torch.linalg.vector_norm(h_TR @ rocs.b_RO, dim=1)
        torch.testing.assert_close(output_norms(h_TR[:, None])[:, 0], lengths_T)

    def test_arrows_score_does_not_know_how_strong_an_update_is(self):
        weak, strong = Case(GateRule.ARROW, [3, 2], seed=2), Case(GateRule.ARROW, [3, 2], seed=2)
        strong.candidates = [
            RankOneComponents(a_RD=7.0 * rocs.a_RD, b_RO=rocs.b_RO) if idx == 0 else rocs
            for idx, rocs in enumerate(strong.candidates)
        ]
        torch.testing.assert_close(strong.factors(), weak.factors())

    def test_spectr_keeping_one_adapter_is_seqr(self):
        one, other = Case(GateRule.SPECTR, [3, 2, 4], seed=3, top_k=1), Case(GateRule.SEQR, [3, 2, 4], seed=3)
        torch.testing.assert_close(one.factors(), other.factors())


class TestFactors:
    @quick
    @given(num=st.integers(1, 6), top_k=st.integers(0, 7), seed=st.integers(0, 1000))
    def test_they_sum_to_one_over_what_is_kept(self, num, top_k, seed):
        scores_TN = torch.randn(5, num, generator=torch.Generator().manual_seed(seed)).double()
        factors_TN = softmax_factors(scores_TN, temperature=0.7, top_k=top_k)
        torch.testing.assert_close(factors_TN.sum(dim=1), torch.ones(5).double())
        assert ((factors_TN > 0).sum(dim=1) == (min(top_k, num) or num)).all()

    def test_the_best_are_kept(self):
        factors = softmax_factors(torch.tensor([[1.0, 3.0, 2.0]]), temperature=1.0, top_k=2)
        assert factors[0].tolist() == pytest.approx([0.0, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)])

    def test_what_is_kept_may_go_by_something_else(self):
        scores, contest = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[9.0, 3.0, 2.0]])
        factors = softmax_factors(scores, temperature=1.0, top_k=2, contest_TN=contest)
        assert factors[0].tolist() == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 0.0])

    def test_a_low_temperature_is_the_best_one(self):
        scores = torch.tensor([[1.0, 1.2, 0.3]])
        torch.testing.assert_close(softmax_factors(scores, temperature=1e-4, top_k=0), best_factors(scores))

    def test_among_equals_the_first_adapter_is_kept(self):
        assert best_factors(torch.tensor([[1.0, 2.0, 2.0]])).tolist() == [[0.0, 1.0, 0.0]]


class TestEdges:
    def test_an_update_that_is_zero_scores_nothing_under_arrow(self):
        scores = arrow_scores(torch.tensor([[0.0, 3.0]]), first_norms_TL=torch.tensor([0.0, 2.0]))
        assert scores.tolist() == [[0.0, 1.5]]

    def test_a_constant_vector_has_no_direction(self):
        assert standardized(torch.full((1, 4), 3.0)).tolist() == [[0.0] * 4]
        x_TD = torch.full((1, 4), 2.0)
        scores = phatgoose_scores(torch.tensor([[5.0]]), deviations_T=deviations(x_TD), num_features=4)
        assert scores.tolist() == [[0.0]]

    def test_phatgoose_is_the_scaled_cosine_of_centred_vectors(self):
        x_TD, vectors_LD = torch.randn(3, 9).double() + 4, torch.randn(2, 9).double() - 2
        found = phatgoose_scores(x_TD @ standardized(vectors_LD).T, deviations_T=deviations(x_TD), num_features=9)
        centred = [each - each.mean(dim=1, keepdim=True) for each in (x_TD, vectors_LD)]
        cosines = torch.nn.functional.cosine_similarity(centred[0][:, None], centred[1][None], dim=-1)
        torch.testing.assert_close(found, 3 * cosines)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_does_not_overflow(self, dtype):
        h_TR = torch.full((1, 2), 3e4, dtype=dtype)
        norms = output_norms(h_TR[:, None])
        assert exact(h_TR).dtype == norms.dtype == torch.float32
        assert norms.item() == pytest.approx(3e4 * math.sqrt(2), rel=0.01)

    def test_the_reference_needs_no_basis(self):
        case = Case(GateRule.SPECTR, [2, 3], seed=8)
        mixed = []
        for rocs in case.candidates:
            turn = torch.linalg.qr(torch.randn(rocs.num_rocs, rocs.num_rocs).double()).Q
            mixed.append(RankOneComponents(a_RD=turn @ rocs.a_RD, b_RO=turn @ rocs.b_RO))
        ids = case.adapter_ids
        for rule in (GateRule.ARROW, GateRule.SPECTR, GateRule.SEQR):
            gate = make_gate_parameters(rule)
            one = reference_alphas(case.x_TD[0], candidates=case.candidates, adapter_ids=ids, gate=gate)
            other = reference_alphas(case.x_TD[0], candidates=mixed, adapter_ids=ids, gate=gate)
            assert one == pytest.approx(other)
