"""T1 to T15: what must be equal, once more and by name, on the adapters of the shipped testbed where they can be.

Each docstring names the tests that go further: other architectures, random shapes, edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from hilora.adapter import LoRAAdapter, RankOneComponents, RocBasis
from hilora.adaptive_gating import arrow_scores
from hilora.candidate_selection import threshold_candidates
from hilora.compression import Squeeze, squeeze
from hilora.decomposition import decompose, delta_weight
from hilora.gaussian import CovarianceFamily, fit_gaussian
from hilora.importers import import_adapter
from hilora.merging import cluster_components
from hilora.routing_plan import GateParameters, GateScope, RocBudget, RocScore, RoutingPlan
from hilora.token_gating import ModuleGate, active_rocs_mask, gate_rocs
from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from tests.builders.engine import submit
from tests.builders.peft_mixture import mixed_by_peft
from tests.builders.strategy_bed import (
    NAMES,
    TESTBED,
    PlainModel,
    StrategyBed,
    assert_same_logits,
    base_model,
    delta,
    embed,
    mixture,
    samples,
    texts,
)
from tests.unit.hilora import test_importers as importers

LAYER = "model.layers.2.mlp.down_proj"
THREE = ("sort-capitals", "reverse-digits", "double-letters")
"""Ranks 8 (4 in this layer), 4 and 8."""


@pytest.fixture(scope="module")
def bed() -> Iterator[StrategyBed]:
    built = StrategyBed()
    yield built
    built.stop()
    built.engine.check_integrity()


@pytest.fixture(scope="module")
def plain() -> PlainModel:
    return PlainModel()


def adapter(name: str) -> LoRAAdapter:
    return read_adapter_folder(TESTBED / "adapters" / name)


def components(name: str, basis: RocBasis = RocBasis.TRAINED) -> RankOneComponents:
    return decompose(adapter(name), basis=basis).modules[LAYER]


def inputs(num_tokens: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, components(NAMES[0]).a_RD.shape[1], generator=generator, dtype=torch.float64)


def plan_of(bed: StrategyBed, weights: dict[str, float], **gate) -> RoutingPlan:
    by_name = {profile.adapter_name: profile for profile in bed.profiles}
    return RoutingPlan(
        budgets=tuple(
            RocBudget(
                adapter_id=by_name[name].adapter_id,
                adapter_name=name,
                lora_rank=by_name[name].lora_rank,
                num_rocs=by_name[name].lora_rank,
                weight=weight,
            )
            for name, weight in weights.items()
        ),
        gate=GateParameters(**gate),
        catalog_generation=1,
    )


def test_t01_a_mixture_of_adapters_is_the_stacked_factors():
    """Also `strategies/test_retriever`, by PEFT's own `cat`."""
    x_TD, weights = inputs(), (0.5, 0.3, -0.2)
    rocs = [components(name) for name in THREE]
    a_RD, b_RO = torch.cat([one.a_RD for one in rocs]).double(), torch.cat([one.b_RO for one in rocs]).double()
    sizes = tuple(one.num_rocs for one in rocs)
    h_TR = x_TD @ a_RD.T
    g_TR = gate_rocs(h_TR, gate=ModuleGate(num_rocs=sizes, budgets=sizes, weights=weights))
    expected = sum(weight * (x_TD @ delta(name, LAYER).T) for name, weight in zip(THREE, weights, strict=True))
    torch.testing.assert_close((g_TR * h_TR) @ b_RO, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scope", list(GateScope))
@pytest.mark.parametrize("basis", list(RocBasis))
def test_t02_gamma_1_and_eta_1_are_the_sum_of_the_loras(bed, plain, scope, basis):
    """Also `test_token_gating.TestBudgets.test_a_full_budget_is_the_sum_of_the_adapters`."""
    weights = dict.fromkeys(THREE, 1.0)
    tokens, logits = bed.answer(plan_of(bed, weights, scope=scope, basis=basis), texts()[0])
    assert_same_logits(logits, plain.logits(bed.prompt_ids(texts()[0]), tokens, mixture(weights)))


@pytest.mark.parametrize("name", THREE)
def test_t03_one_candidate_with_its_full_budget_is_pefts_own_output(bed, name):
    """Also `contract/peft` for other architectures and layer kinds, `test_peft_equality` for config variants."""
    tokens, logits = bed.answer(plan_of(bed, {name: 1.0}), texts()[1])
    assert_same_logits(logits, mixed_by_peft({name: 1.0}, bed.prompt_ids(texts()[1]), tokens))


def test_t04_a_zero_budget_is_the_base_model_bit_for_bit(bed):
    """Also `engine/test_exactness.TestZeroBudget`."""
    full = plan_of(bed, {THREE[0]: 1.0})
    none = replace(full, budgets=tuple(replace(budget, num_rocs=0) for budget in full.budgets))
    zero_tokens, zero = bed.answer(none, texts()[2])
    base_tokens, base = bed.answer(RoutingPlan(), texts()[2])
    assert zero_tokens == base_tokens
    assert torch.equal(zero, base)


def test_t05_squeeze_at_the_source_rank_is_the_identity_and_its_error_is_the_tail():
    """Also `test_compression.TestRank`."""
    source = adapter("sort-letters")
    same = squeeze(source, Squeeze(rank=source.lora_rank)).adapter
    assert all(torch.equal(same.modules[path].lora_a, one.lora_a) for path, one in source.modules.items())
    smaller = squeeze(source, Squeeze(rank=3)).adapter
    for path in source.modules:
        wanted, found = (decompose(one, basis=RocBasis.TRAINED).modules[path] for one in (source, smaller))
        error = torch.linalg.matrix_norm(delta_weight(wanted).double() - delta_weight(found).double())
        tail = torch.linalg.svdvals(delta("sort-letters", path))[3:].square().sum().sqrt()
        assert float(error) == pytest.approx(float(tail), rel=1e-4)


def test_t06_rasa_beamlora_and_sd_lora_expand_to_their_native_forward():
    """Also `test_importers`, with random shapes."""
    x_TD = importers.normal(5, 6, seed=1)
    shared = importers.rasa()
    from_rasa = import_adapter(config=importers.rasa_config(), tensors=shared)
    continual = importers.sd_lora(3)
    from_sd = import_adapter(config={"peft_type": "SD_LORA"}, tensors=continual)
    for path in importers.PATHS:
        torch.testing.assert_close(
            importers.update_of(from_rasa, path, x_TD), importers.rasa_forward(shared, path, x_TD), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            importers.update_of(from_sd, path, x_TD),
            importers.sd_forward(continual, path, x_TD, 3),
            rtol=1e-5,
            atol=1e-5,
        )
    config, tensors = importers.beam(importers.TestBeamLora.GATES)
    from_beam = import_adapter(config=config, tensors=tensors)
    for path, gate in importers.TestBeamLora.GATES.items():
        lora_a, lora_b = (tensors[f"base_model.model.{path}.lora_{half}.weight"].double() for half in "AB")
        y_TD = importers.normal(5, lora_a.shape[1], seed=2)
        native = 2.0 * (y_TD @ lora_a.T * torch.softmax(gate / 0.05, dim=-1) * 4) @ lora_b.T
        torch.testing.assert_close(importers.update_of(from_beam, path, y_TD), native, rtol=1e-5, atol=1e-5)


def test_t07_lego_with_as_many_clusters_as_components_is_the_sum():
    """Also `strategies/test_lego`, through a worker; `test_merging`."""
    sources = [decompose(adapter(name), basis=RocBasis.TRAINED) for name in THREE]
    num_rocs = sum(source.lora_rank for source in sources)
    merged = cluster_components(sources, weights=[1.0] * 3, num_rocs=num_rocs, reweights=False)
    for path, rocs in merged.modules.items():
        expected = sum(delta(name, path) for name in THREE)
        torch.testing.assert_close(delta_weight(rocs).double(), expected, rtol=1e-5, atol=1e-6)


def test_t08_in_the_svd_basis_responses_are_outputs_and_arrows_prototype_is_the_first_row():
    """Also `test_decomposition.TestSingularBasis`."""
    x_TD = inputs()
    for name in THREE:
        rocs = components(name, RocBasis.SVD)
        h_TR = x_TD @ rocs.a_RD.double().T
        torch.testing.assert_close(h_TR.norm(dim=1), (x_TD @ delta(name, LAYER).T).norm(dim=1), rtol=1e-5, atol=1e-6)
        prototype = torch.linalg.svd(delta(name, LAYER), full_matrices=False).Vh[0]
        first = rocs.a_RD[0].double()
        assert abs(float(prototype @ first / first.norm())) == pytest.approx(1.0, abs=1e-6)
        scores = arrow_scores(h_TR[:, :1], first_norms_TL=first.norm()[None, None])
        torch.testing.assert_close(scores[:, 0], (x_TD @ prototype).abs(), rtol=1e-5, atol=1e-6)


def test_t09_the_low_rank_likelihood_is_the_dense_one():
    """Also `test_gaussian.TestLikelihood`, for every family."""
    for name in THREE:
        gaussian = fit_gaussian(samples()[name], family=CovarianceFamily.FULL, shrinkage=0.5)
        dense = multivariate_normal(gaussian.mean, gaussian.covariance, allow_singular=False)
        for text in texts():
            assert gaussian.log_likelihood(embed(text)) == pytest.approx(dense.logpdf(embed(text)), rel=1e-8)


@pytest.mark.parametrize(
    ("scores", "k", "chosen"),
    [
        ([0.5, -1.0, 2.0], 3, [2, 0]),
        ([0.0, -5.0, -1.0, -2.0], 3, [0, 2, 3]),
        ([-3.2, -4.0, -5.0, -6.0, -7.0], 3, [0, 1, 2, 3]),
        ([-0.5, -0.6, -0.7], 1, [0]),
    ],
)
def test_t10_the_branches_of_e4(scores, k, chosen):
    """Also `test_candidate_selection.TestThreshold`."""
    assert threshold_candidates(np.array(scores), min_candidates=k).tolist() == chosen


@pytest.mark.parametrize("strategy", ["hilora", "hilora-paper"])
def test_t11_counts_sum_to_the_budget_within_the_ranks_and_a_seed_decides(bed, strategy):
    """Also `test_budget_allocation`, and for every strategy `unit/hilora/strategies`."""
    ranks = {profile.adapter_name: profile.lora_rank for profile in bed.profiles}
    for text in texts():
        for seed in range(4):
            question = {"request_seed": seed}
            plan = bed.decide(strategy, text, question=question, candidate_mass=1.0, max_candidates=5).plan
            again = bed.decide(strategy, text, question=question, candidate_mass=1.0, max_candidates=5).plan
            assert plan == again
            assert all(1 <= budget.num_rocs <= ranks[budget.adapter_name] for budget in plan.budgets)
            if strategy == "hilora":
                mean_rank = sum(ranks[budget.adapter_name] for budget in plan.budgets) / len(plan.budgets)
                share = 0.4 * sum(ranks[budget.adapter_name] for budget in plan.budgets)
                expected = max(int(share + 0.5), int(mean_rank + 0.5), len(plan.budgets))
                assert plan.num_rocs == expected


def test_t12_permutations_change_nothing_and_rescaling_changes_the_activation_order_alone():
    """Also `test_token_gating.TestInvariances`."""
    x_TD, rocs = inputs(), components("sort-letters")
    order = torch.randperm(rocs.num_rocs, generator=torch.Generator().manual_seed(3))
    stretch_R1 = torch.linspace(0.2, 4.0, rocs.num_rocs, dtype=torch.float64)[:, None]

    def kept(a_RD: torch.Tensor, b_RO: torch.Tensor, score: RocScore) -> torch.Tensor:
        gate = ModuleGate(num_rocs=(rocs.num_rocs,), budgets=(3,), weights=(1.0,), score=score)
        return active_rocs_mask(x_TD @ a_RD.T, gate=gate, b_norm_R=b_RO.norm(dim=1))

    a_RD, b_RO = rocs.a_RD.double(), rocs.b_RO.double()
    for score in RocScore:
        assert torch.equal(kept(a_RD, b_RO, score)[:, order], kept(a_RD[order], b_RO[order], score))
    changed = [kept(a_RD, b_RO, score) != kept(a_RD * stretch_R1, b_RO / stretch_R1, score) for score in RocScore]
    by_score = dict(zip(RocScore, changed, strict=True))
    assert by_score[RocScore.ACTIVATION].any()
    assert not by_score[RocScore.CONTRIBUTION].any()


def test_t13_different_plans_in_one_batch_equal_each_alone(bed):
    """Also `engine/test_exactness.TestBatching`, with twelve plans."""
    strategies = ("hilora", "hilora-paper", "arrow", "seqr", "lorauter", "retriever-fusion", "lego", "logo", "base")
    text = texts()[0]
    plans = {name: bed.prepared(bed.decide(name, text).plan, text) for name in strategies}
    alone = {name: bed.answer(plan, text) for name, plan in plans.items()}
    prompt = bed.prompt_ids(text)
    recorders = {
        name: submit(bed.engine, f"together-{name}", prompt, plan=plan, max_tokens=4) for name, plan in plans.items()
    }
    for name, recorder in recorders.items():
        assert recorder.done.wait(timeout=60)
        tokens, logits = alone[name]
        assert recorder.token_ids == tokens
        assert_same_logits(bed.logits_of(f"together-{name}"), logits)


def test_t14_a_decode_step_with_a_cache_is_the_full_forward_pass(bed):
    """Also `engine/test_exactness.TestAgainstTransformers`, for thirteen architectures."""
    model = base_model()
    for text in texts():
        prompt = bed.prompt_ids(text)
        tokens, logits = bed.answer(RoutingPlan(), text)
        with torch.inference_mode():
            whole = model(input_ids=torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
        assert_same_logits(logits, whole)


def test_t15_a_plan_of_two_phases_reads_with_one_and_writes_with_the_other(bed):
    """Also `engine/test_two_phases`, with parts of adapters, memory that is shared and given back, and an encoder."""
    reading, writing = dict(zip(THREE, (1.0, 1.0, 0.5), strict=True)), dict(zip(THREE, (1.0, 0.0, -0.25), strict=True))
    plan = plan_of(bed, writing)
    plan = replace(plan, budgets=tuple(replace(one, reading_weight=reading[one.adapter_name]) for one in plan.budgets))
    reference = GatedModel(base_model().float(), {name: adapter(name) for name in THREE})
    for text in texts():
        prompt = bed.prompt_ids(text)
        tokens, logits = bed.answer(plan, text)
        whole = reference.logits(plan, torch.tensor([prompt + tokens[:-1]]), num_prompt_tokens=len(prompt))
        assert_same_logits(logits, whole[0, len(prompt) - 1 :])
