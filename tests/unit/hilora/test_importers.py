"""Every importer's factors compute what its method's own forward pass does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.compression import Squeeze, squeeze
from hilora.decomposition import decompose
from hilora.errors import AdapterShapeMismatch, InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import RefusalLog, Severity
from hilora.importers import IMPORTERS, PLAIN_FORMAT, ImportedAdapter, import_adapter
from hilora.importers.beamlora import importance
from hilora.importers.smora import learned_gate_of
from hilora.learned_gate import gate_from_tensors, gate_tensors
from hilora.peft_format import check_values
from hilora.reference_adaptive import reference_adaptive_update
from hilora.routing_plan import GateParameters, GateRule
from tests.builders.adapters import Q_PROJ, UP_PROJ, peft_config, peft_tensors, random_adapter

Tensors = dict[str, torch.Tensor]
PATHS = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
SIZES = st.integers(1, 5)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def update_of(imported: ImportedAdapter, path: str, x_TD: torch.Tensor) -> torch.Tensor:
    factors = imported.adapter.modules[path]
    return factors.scaling * (x_TD @ factors.lora_a.double().T) @ factors.lora_b.double().T


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def rasa(*, rank: int = 4, shared: int = 1, num_in: int = 6, num_out: int = 5, seed: int = 0) -> Tensors:
    """As the authors' fork saves it: L layers share `k L` ranks."""
    num_shared = shared * len(PATHS)
    tensors = {
        "base_model.rasa_shared_A.self_attn__q_proj.weight": normal(num_shared, num_in, seed=seed),
        "base_model.rasa_shared_B.self_attn__q_proj.weight": normal(num_out, num_shared, seed=seed + 1),
    }
    for place, path in enumerate(PATHS):
        own = rank - shared
        tensors |= {
            f"base_model.model.{path}.rasa_A.weight": normal(own, num_in, seed=seed + 10 + place),
            f"base_model.model.{path}.rasa_B.weight": normal(num_out, own, seed=seed + 20 + place),
            f"base_model.model.{path}.rasa_mixing.weight": normal(own + num_shared, seed=seed + 30 + place),
        }
    return tensors


def rasa_config(**changes: object) -> dict[str, object]:
    return {"peft_type": "RASA", "r": 4, "rasa_k": 1, "rasa_alpha": 8, "rasa_dropout": 0.0, "bias": "none", **changes}


def rasa_forward(tensors: Tensors, path: str, x_TD: torch.Tensor) -> torch.Tensor:
    shared = "base_model.rasa_shared_{}.self_attn__q_proj.weight"
    own = f"base_model.model.{path}.rasa_"
    h_TR = torch.cat([x_TD @ tensors[f"{own}A.weight"].T, x_TD @ tensors[shared.format("A")].T], dim=1)
    h_TR = h_TR * tensors[f"{own}mixing.weight"]
    num_own = tensors[f"{own}A.weight"].shape[0]
    return h_TR[:, :num_own] @ tensors[f"{own}B.weight"].T + h_TR[:, num_own:] @ tensors[shared.format("B")].T


class TestRasa:
    @settings(max_examples=25, deadline=None)
    @given(rank=st.integers(2, 6), shared=st.integers(1, 2), num_in=SIZES, num_out=SIZES, seed=st.integers(0, 99))
    def test_the_expansion_is_the_native_forward(self, rank, shared, num_in, num_out, seed):
        tensors = rasa(rank=max(rank, shared), shared=shared, num_in=num_in, num_out=num_out, seed=seed)
        imported = import_adapter(config=rasa_config(r=rank, rasa_k=shared), tensors=tensors)
        x_TD = normal(7, num_in, seed=seed + 99)
        assert imported.source_format == "rasa"
        for path in PATHS:
            assert_close(update_of(imported, path, x_TD), rasa_forward(tensors, path, x_TD))

    def test_the_rank_is_private_plus_shared_of_all_layers(self):
        imported = import_adapter(config=rasa_config(), tensors=rasa(rank=4, shared=1))
        assert {factors.lora_rank for factors in imported.adapter.modules.values()} == {3 + 3}

    def test_squeezed_to_its_width_it_is_the_same(self):
        tensors = rasa(rank=8, shared=2, num_in=6, num_out=5)
        imported = import_adapter(config=rasa_config(), tensors=tensors)
        squeezed = squeeze(imported.adapter, Squeeze(rank=5)).adapter
        assert squeezed.lora_rank == 5
        x_TD = normal(3, 6, seed=5)
        for path in PATHS:
            factors = squeezed.modules[path]
            assert_close(
                (x_TD @ factors.lora_a.double().T) @ factors.lora_b.double().T, rasa_forward(tensors, path, x_TD)
            )

    @pytest.mark.parametrize("lost", ["rasa_shared_A.self_attn__q_proj", f"model.{PATHS[1]}.rasa_mixing"])
    def test_a_missing_part_is_named(self, lost):
        tensors = rasa()
        del tensors[f"base_model.{lost}.weight"]
        with pytest.raises(InvalidAdapter) as caught:
            import_adapter(config=rasa_config(), tensors=tensors)
        assert caught.value.code == "unpaired_factor"

    def test_parts_that_do_not_fit(self):
        tensors = rasa() | {f"base_model.model.{PATHS[0]}.rasa_mixing.weight": torch.ones(9)}
        with pytest.raises(AdapterShapeMismatch) as caught:
            import_adapter(config=rasa_config(), tensors=tensors)
        assert (caught.value.code, caught.value.place) == ("rank_mismatch", PATHS[0])

    def test_its_config_is_checked_like_peft_s(self):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            import_adapter(config=rasa_config(modules_to_save=["lm_head"]), tensors=rasa())
        assert caught.value.place == "modules_to_save"


def beam(gates: Mapping[str, torch.Tensor]) -> tuple[dict[str, object], Tensors]:
    config = peft_config(use_beamlora=True, use_mora=False, mora_type=1, plora_m=0.0, only_add_gate=False)
    tensors = peft_tensors(random_adapter())
    return config, tensors | {f"base_model.model.{path}.lora_gate": gate for path, gate in gates.items()}


class TestBeamLora:
    GATES: Mapping[str, torch.Tensor] = {
        path: normal(1, 4, seed=place) / 20 for place, path in enumerate([Q_PROJ, UP_PROJ])
    }

    @pytest.mark.parametrize("temperature", [None, 0.03, 1.0])
    def test_the_folded_factors_are_the_native_forward(self, temperature):
        config, tensors = beam(self.GATES)
        if temperature is not None:
            config["beamlora_temperature"] = temperature
        imported = import_adapter(config=config, tensors=tensors)
        for path, gate in self.GATES.items():
            lora_a = tensors[f"base_model.model.{path}.lora_A.weight"].double()
            lora_b = tensors[f"base_model.model.{path}.lora_B.weight"].double()
            x_TD = normal(6, lora_a.shape[1], seed=3)
            native_TR = x_TD @ lora_a.T * torch.softmax(gate / (temperature or 0.05), dim=-1) * 4
            assert_close(update_of(imported, path, x_TD), 2.0 * native_TR @ lora_b.T)

    @given(values=st.lists(st.floats(-3, 3), min_size=1, max_size=9), temperature=st.floats(0.01, 10))
    def test_importances_are_ordered_like_the_gate_and_sum_to_the_rank(self, values, temperature):
        gate = torch.tensor([values])
        p_R = importance(gate, temperature=temperature)
        assert float(p_R.sum()) == pytest.approx(len(values))
        for i, j in [(i, j) for i in range(len(values)) for j in range(len(values))]:
            assert not gate[0, i] > gate[0, j] or p_R[i] >= p_R[j]

    def test_a_temperature_that_was_assumed_is_said(self):
        config, tensors = beam(self.GATES)
        (note,) = import_adapter(config=config, tensors=tensors).notes
        assert (note.code, note.severity) == ("assumed_temperature", Severity.WARNING)
        assert not import_adapter(config=config | {"beamlora_temperature": 0.05}, tensors=tensors).notes

    def test_a_gate_of_another_rank(self):
        config, tensors = beam({Q_PROJ: torch.zeros(1, 5)})
        with pytest.raises(AdapterShapeMismatch):
            import_adapter(config=config, tensors=tensors)

    def test_other_methods_of_the_same_fork_are_refused_by_name(self):
        config, tensors = beam(self.GATES)
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            import_adapter(config=config | {"use_mora": True}, tensors=tensors)
        assert caught.value.place == "use_mora"


def sd_lora(num_tasks: int, *, num_in: int = 6, num_out: int = 5, ranks: tuple[int, ...] = (2, 3, 1, 4)) -> Tensors:
    tensors: Tensors = {"scaling_factor": torch.tensor([0.7])}
    if num_tasks > 1:
        # The authors allocate more magnitudes than there are tasks.
        tensors["scaling_factor_prev"] = normal(num_tasks + 3, seed=8)
    for path in PATHS:
        for task in range(num_tasks):
            name = f"base_model.model.{path}.lora_{{}}.{task}.weight"
            tensors[name.format("A")] = normal(ranks[task], num_in, seed=task)
            tensors[name.format("B")] = normal(num_out, ranks[task], seed=task + 50)
    return tensors


def sd_forward(tensors: Tensors, path: str, x_TD: torch.Tensor, num_tasks: int) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for task in range(num_tasks):
        name = f"base_model.model.{path}.lora_{{}}.{task}.weight"
        a, b = tensors[name.format("A")], tensors[name.format("B")]
        output = x_TD @ a.T @ b.T
        if task == num_tasks - 1:
            total = total + tensors["scaling_factor"].double() * output
        else:
            total = total + tensors["scaling_factor_prev"][task] * output / (torch.norm(a) * torch.norm(b))
    return total


class TestSdLora:
    @pytest.mark.parametrize("num_tasks", [1, 2, 4])
    def test_the_expansion_is_the_native_forward(self, num_tasks):
        tensors = sd_lora(num_tasks)
        imported = import_adapter(config={"peft_type": "SD_LORA", "r": 2}, tensors=tensors)
        x_TD = normal(6, 6, seed=77)
        assert imported.source_format == "sd_lora"
        for path in PATHS:
            assert_close(update_of(imported, path, x_TD), sd_forward(tensors, path, x_TD, num_tasks))

    def test_magnitudes_of_a_module_s_own_win(self):
        tensors = sd_lora(1) | {f"base_model.model.{PATHS[0]}.scaling_factor": torch.tensor([-2.0])}
        imported = import_adapter(config={"peft_type": "SD_LORA"}, tensors=tensors)
        ratio = imported.adapter.modules[PATHS[0]].lora_b / imported.adapter.modules[PATHS[1]].lora_b
        assert_close(ratio, torch.full_like(ratio, -2.0 / 0.7))

    def test_a_direction_of_length_zero_adds_nothing(self):
        tensors = sd_lora(2)
        tensors[f"base_model.model.{PATHS[0]}.lora_B.0.weight"].zero_()
        check_values(import_adapter(config={"peft_type": "SD_LORA"}, tensors=tensors).adapter)

    @pytest.mark.parametrize(
        "lost", ["scaling_factor", "scaling_factor_prev", f"base_model.model.{PATHS[0]}.lora_A.0.weight"]
    )
    def test_a_missing_part(self, lost):
        tensors = sd_lora(2)
        del tensors[lost]
        with pytest.raises(InvalidAdapter) as caught:
            import_adapter(config={"peft_type": "SD_LORA"}, tensors=tensors)
        assert caught.value.code == "unpaired_factor"
        assert "scaling_factor" in caught.value.remedy


def smora(*, has_bias: bool) -> tuple[dict[str, object], Tensors]:
    tensors = peft_tensors(random_adapter())
    for place, (path, factors) in enumerate(random_adapter().modules.items()):
        name = f"base_model.model.{path}.lora_router"
        tensors[f"{name}.weight"] = normal(*factors.lora_a.shape, seed=place).float()
        if has_bias:
            tensors[f"{name}.bias"] = normal(factors.lora_rank, seed=place + 40).float()
    return peft_config(peft_type="SMORA", smora_top_k=2), tensors


class TestSmora:
    def test_the_ranks_are_registered_exactly_and_the_gate_is_said_to_be_apart(self):
        config, tensors = smora(has_bias=True)
        imported = import_adapter(config=config, tensors=tensors)
        for path, factors in random_adapter().modules.items():
            assert torch.equal(imported.adapter.modules[path].lora_a, factors.lora_a)
            assert torch.equal(imported.adapter.modules[path].lora_b, factors.lora_b)
        (note,) = imported.notes
        assert note.code == "learned_gate_apart"
        assert "top_k 2" in note.remedy

    @pytest.mark.parametrize("has_bias", [True, False])
    def test_factors_and_gate_together_are_the_native_forward(self, has_bias):
        config, tensors = smora(has_bias=has_bias)
        adapter = decompose(import_adapter(config=config, tensors=tensors).adapter, basis=RocBasis.TRAINED)
        stored, metadata = gate_tensors(learned_gate_of(tensors, adapter_id="s@1"))
        learned = gate_from_tensors(stored, metadata=metadata)
        gate = GateParameters(rule=GateRule.SMORA, gate_id="g@1", basis=RocBasis.TRAINED, top_k=2)
        for path, rocs in adapter.modules.items():
            x_TD = normal(9, rocs.a_RD.shape[1], seed=6).float()
            actual = reference_adaptive_update(
                x_TD,
                candidates=[rocs],
                adapter_ids=["s@1"],
                weights=[1.0],
                gate=gate,
                learned=learned.modules[path],
            )
            assert_close(actual, smora_forward(tensors, path, x_TD, top_k=2))

    def test_a_router_of_another_shape(self):
        config, tensors = smora(has_bias=False)
        tensors[f"base_model.model.{Q_PROJ}.lora_router.weight"] = torch.ones(3, 12)
        with pytest.raises(AdapterShapeMismatch) as caught:
            import_adapter(config=config, tensors=tensors)
        assert caught.value.place == Q_PROJ

    def test_files_without_a_gate_have_none(self):
        with pytest.raises(ValueError, match="lora_router"):
            learned_gate_of(peft_tensors(random_adapter()), adapter_id="s@1")


class TestDetection:
    CASES: Mapping[str, tuple[dict[str, object], Tensors]] = {
        "rasa": (rasa_config(), rasa()),
        "beamlora": beam(TestBeamLora.GATES),
        "sd_lora": ({"peft_type": "SD-LoRA"}, sd_lora(2)),
        "smora": smora(has_bias=True),
        PLAIN_FORMAT: (peft_config(), peft_tensors(random_adapter())),
    }

    @pytest.mark.parametrize("name", CASES)
    def test_at_most_one_importer_takes_an_adapter(self, name):
        config, tensors = self.CASES[name]
        assert sum(importer.recognises(config, tensors.keys()) for importer in IMPORTERS) == (name != PLAIN_FORMAT)
        assert import_adapter(config=config, tensors=tensors).source_format == name

    @pytest.mark.parametrize("name", CASES)
    def test_a_header_is_enough_for_names_shapes_and_ranks(self, name):
        config, tensors = self.CASES[name]
        header = {key: tensor.to("meta") for key, tensor in tensors.items()}
        outline, whole = import_adapter(config=config, tensors=header), import_adapter(config=config, tensors=tensors)
        shapes = [
            {path: (f.lora_a.shape, f.lora_b.shape) for path, f in imported.adapter.modules.items()}
            for imported in (outline, whole)
        ]
        assert shapes[0] == shapes[1]

    @pytest.mark.parametrize("name", CASES)
    def test_what_is_wrong_is_said_and_the_rest_is_read(self, name):
        config, tensors = self.CASES[name]
        log = RefusalLog()
        damaged = {**tensors, "base_model.model.intruder": torch.ones(1)}
        imported = import_adapter(config=config | {"use_dora": True}, tensors=damaged, refuse=log)
        assert {error.place for error in log.errors} == {"use_dora", "base_model.model.intruder"}
        assert imported.adapter.modules


PARTS = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.0.weight",
    "lora_B.1.weight",
    "lora_gate",
    "lora_router.weight",
    "lora_router.bias",
    "rasa_A.weight",
    "rasa_B.weight",
    "rasa_mixing.weight",
    "scaling_factor",
    "base_layer.weight",
    "lora_embedding_A",
    "lora_magnitude_vector",
]
names = st.one_of(
    st.builds(
        "base_model.model.{}.{}".format, st.sampled_from(["a.q", "m.experts", "layers.1.q"]), st.sampled_from(PARTS)
    ),
    st.sampled_from(
        [
            "scaling_factor",
            "scaling_factor_prev",
            "base_model.rasa_shared_A.q.weight",
            "base_model.rasa_shared_B.q.weight",
        ]
    ),
    st.text(max_size=12),
)
shapes = st.lists(st.integers(0, 4), max_size=3)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.text(max_size=5), st.lists(st.integers(0, 2), max_size=2)
)
configs = st.dictionaries(
    st.sampled_from(
        [
            "r",
            "lora_alpha",
            "use_beamlora",
            "use_smora",
            "smora_top_k",
            "rank_pattern",
            "target_modules",
            "bias",
            "target_parameters",
            "beamlora_temperature",
            "init_lora_weights",
            "layers_to_transform",
            "surprise",
        ]
    ),
    values,
)


class TestGarbage:
    @settings(max_examples=300, deadline=None)
    @given(
        method=st.sampled_from(["LORA", "RASA", "SD_LORA", "SMORA", "IA3", None, 7]),
        config=configs,
        tensors=st.dictionaries(names, shapes, max_size=8),
        is_meta=st.booleans(),
    )
    def test_whatever_comes_is_refused_by_an_error_of_ours_or_read(self, method, config, tensors, is_meta):
        device = "meta" if is_meta else "cpu"
        content = {name: torch.ones(shape, device=device) for name, shape in tensors.items()}
        log = RefusalLog()
        imported = import_adapter(config={"peft_type": method, **config}, tensors=content, refuse=log)
        assert log.errors or imported.adapter.modules
        assert all(error.code and error.remedy and error.place is not None for error in log.errors)


def smora_forward(tensors: Tensors, path: str, x_TD: torch.Tensor, *, top_k: int) -> torch.Tensor:
    name = f"base_model.model.{path}."
    scores_TR = x_TD @ tensors[f"{name}lora_router.weight"].T
    chosen_TK = (scores_TR + tensors.get(f"{name}lora_router.bias", torch.zeros(1))).topk(top_k, dim=1).indices
    kept_TR = torch.full_like(scores_TR, -torch.inf).scatter(1, chosen_TK, scores_TR.gather(1, chosen_TK))
    g_TR = torch.softmax(kept_TR, dim=1)
    h_TR = x_TD @ tensors[f"{name}lora_A.weight"].T
    return 2.0 * (g_TR * h_TR) @ tensors[f"{name}lora_B.weight"].T
