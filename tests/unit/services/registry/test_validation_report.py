"""One upload tells its sender everything: what is refused, what is worth knowing, and what was made of it."""

from __future__ import annotations

import json

import pytest
import torch

from hilora.compression import Squeeze
from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Finding, RefusalLog, Severity
from services.registry.infra.records import job_from_json, job_to_json
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.job import IngestState
from services.registry.validation import AdapterValidator, ValidationLimits
from services.registry.validation_report import (
    REPORT_KEY,
    ValidationReport,
    refusal_of,
    report_from_json,
    report_of,
)
from tests.builders.adapters import (
    DOWN_PROJ,
    MODULE_SHAPES,
    Q_PROJ,
    UP_PROJ,
    peft_config,
    peft_tensors,
    random_adapter,
    write_peft_folder,
)
from tests.builders.registry_values import a_job
from tests.fakes.registry_ports import FakeBaseModel


def a_finding(code: str, severity: Severity = Severity.WARNING) -> Finding:
    return Finding(code=code, severity=severity, place="p", message="m", remedy="r")


def validator(*, max_lora_rank: int = 16, tied: frozenset[str] = frozenset()) -> AdapterValidator:
    return AdapterValidator(
        reader=HardenedSafetensorsReader(),
        base=FakeBaseModel(MODULE_SHAPES, tied=tied),
        limits=ValidationLimits(max_lora_rank=max_lora_rank, max_eager_bytes=1 << 20),
    )


def folder_of(path, *, tensors=None, num_samples=5, **config):
    write_peft_folder(
        path, config=peft_config(**config), tensors=peft_tensors(random_adapter()) if tensors is None else tensors
    )
    lines = (json.dumps({"text": f"sample {idx}"}) + "\n" for idx in range(num_samples))
    (path / "samples.jsonl").write_text("".join(lines))
    return path


def refused(folder, **options) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        validator(**options).validate(folder)
    return caught.value


def codes_of(error: InvalidAdapter) -> list[tuple[str, str]]:
    report = report_from_json(error.details[REPORT_KEY])
    return [(finding.code, finding.place) for finding in report.findings if finding.severity is Severity.ERROR]


class TestRefusals:
    def test_everything_is_found_at_once_and_the_first_is_the_error(self, tmp_path):
        tensors = peft_tensors(random_adapter())
        tensors[f"base_model.model.{Q_PROJ}.lora_A.weight"] = torch.ones(4, 13)
        tensors[f"base_model.model.{UP_PROJ}.lora_B.weight"][0, 0] = torch.nan
        tensors["base_model.model.model.layers.7.q_proj.lora_A.weight"] = torch.ones(4, 12)
        tensors["base_model.model.model.layers.7.q_proj.lora_B.weight"] = torch.ones(12, 4)
        tensors["base_model.model.lm_head.modules_to_save.weight"] = torch.ones(2, 2)
        folder = folder_of(tmp_path, tensors=tensors, num_samples=0, use_dora=True, modules_to_save=["lm_head"])
        error = refused(folder)
        assert sorted(codes_of(error)) == sorted(
            [
                ("unsupported_adapter_feature", "use_dora"),
                ("unsupported_adapter_feature", "modules_to_save"),
                ("unexpected_tensor", "base_model.model.lm_head.modules_to_save.weight"),
                ("adapter_shape_mismatch", Q_PROJ),
                ("unknown_target_module", "model.layers.7.q_proj"),
                ("non_finite_weights", UP_PROJ),
                ("empty_samples", "samples.jsonl"),
            ]
        )
        assert error.code == codes_of(error)[0][0]
        report = report_from_json(error.details[REPORT_KEY])
        assert all(finding.remedy for finding in report.findings if finding.severity is not Severity.INFO)

    def test_every_module_of_a_wrong_shape_is_listed(self, tmp_path):
        adapter = random_adapter(shapes={path: (sizes[0] + 1, sizes[1]) for path, sizes in MODULE_SHAPES.items()})
        error = refused(folder_of(tmp_path, tensors=peft_tensors(adapter)))
        assert isinstance(error, AdapterShapeMismatch)
        assert {place for _, place in codes_of(error)} == set(MODULE_SHAPES)

    def test_values_are_not_read_where_ranks_exceed_the_cap(self, tmp_path):
        tensors = peft_tensors(random_adapter())
        tensors[f"base_model.model.{UP_PROJ}.lora_B.weight"][0, 0] = torch.nan
        assert {code for code, _ in codes_of(refused(folder_of(tmp_path, tensors=tensors), max_lora_rank=3))} == {
            "rank_too_large"
        }

    def test_an_unreadable_rank_is_not_blamed_on_the_tensors(self, tmp_path):
        assert codes_of(refused(folder_of(tmp_path, r="four"))) == [("invalid_adapter_config", "r")]

    def test_missing_files_are_all_named(self, tmp_path):
        assert codes_of(refused(tmp_path)) == [("missing_file", "adapter_config.json")]


class TestRemarks:
    def _codes(self, folder, **options) -> set[str]:
        return {finding.code for finding in validator(**options).validate(folder).report.findings}

    def test_a_sound_adapter_has_only_its_scaling_noted(self, tmp_path):
        (finding,) = validator().validate(folder_of(tmp_path)).report.findings
        assert (finding.code, finding.severity) == ("scaling_used", Severity.INFO)

    def test_what_may_surprise_is_said(self, tmp_path):
        tensors = peft_tensors(random_adapter())
        tensors[f"base_model.model.{Q_PROJ}.lora_B.weight"][:, 0] = 0.0
        folder = folder_of(tmp_path, tensors=tensors, num_samples=2, base_model_name_or_path="org/another")
        assert self._codes(folder, tied=frozenset({Q_PROJ, DOWN_PROJ})) == {
            "scaling_used",
            "few_samples",
            "base_name_mismatch",
            "tied_weights",
            "dead_components",
        }


class TestSqueeze:
    def test_it_is_applied_and_said(self, tmp_path):
        validated = validator().validate(folder_of(tmp_path), how=Squeeze(rank=2))
        assert validated.adapter.lora_rank == 2
        assert 0.0 < validated.energy_kept < 1.0
        assert "squeezed" in {finding.code for finding in validated.report.findings}

    def test_a_rank_above_the_cap_is_welcome_if_it_is_compressed_below_it(self, tmp_path):
        folder = folder_of(tmp_path)
        assert "squeeze" in refused(folder, max_lora_rank=3).remedy
        assert validator(max_lora_rank=3).validate(folder, how=Squeeze(rank=3)).adapter.lora_rank == 3

    def test_compressed_too_little_it_is_refused(self, tmp_path):
        with pytest.raises(AdapterShapeMismatch) as caught:
            validator(max_lora_rank=2).validate(folder_of(tmp_path), how=Squeeze(energy=1.0))
        assert caught.value.code == "rank_too_large"

    def test_other_targets_are_other_content(self, tmp_path):
        folder = folder_of(tmp_path)
        digests = {validator().digest(folder, how=how) for how in (None, Squeeze(rank=2), Squeeze(energy=0.5))}
        assert len(digests) == 3
        assert validator().validate(folder, how=Squeeze(rank=2)).source_sha256 in digests


class TestReport:
    def test_errors_come_first_and_it_survives_json(self):
        log = RefusalLog()
        log(InvalidAdapter("bad", code="c", remedy="do", place="here"))
        report = report_of(log, [a_finding("i", Severity.INFO), a_finding("w")])
        assert [finding.code for finding in report.findings] == ["c", "w", "i"]
        assert not report.is_accepted
        assert report_from_json(json.loads(json.dumps(report.to_json()))) == report
        assert refusal_of(log, report) is log.errors[0]

    def test_a_flood_is_counted(self):
        log = RefusalLog(max_errors=2)
        fullness = []
        for number in range(5):
            log(InvalidAdapter(str(number)))
            fullness.append(log.is_full)
        assert fullness == [False, True, True, True, True]
        report = report_of(log, [])
        assert (len(report.findings), report.num_omitted) == (2, 3)

    @pytest.mark.parametrize(("num_wrong", "is_read"), [(1, True), (600, False)])
    def test_where_the_list_is_full_the_values_are_not_read_for_it(self, tmp_path, monkeypatch, num_wrong, is_read):
        strange = {f"strange.{number}": torch.zeros(0) for number in range(num_wrong)}
        folder = folder_of(tmp_path, tensors={**peft_tensors(random_adapter()), **strange})
        read = []
        whole = HardenedSafetensorsReader.tensors
        monkeypatch.setattr(HardenedSafetensorsReader, "tensors", lambda *given: read.append(given) or whole(*given))

        refusal = refused(folder)
        assert refusal.code == "unexpected_tensor"
        assert refusal.details[REPORT_KEY]["num_omitted"] == max(0, num_wrong - 500)
        assert bool(read) is is_read

    @pytest.mark.parametrize("fields", [{}, {"findings": [{"code": "x"}], "num_omitted": 0}, {"findings": 3}])
    def test_something_else_is_no_report(self, fields):
        with pytest.raises(ValueError, match=r"report|Severity"):
            report_from_json(fields)

    def test_a_job_keeps_it(self):
        report = ValidationReport(findings=(a_finding("w"),))
        job = a_job().moved(IngestState.FETCHING, detail="").checked(report)
        assert job_from_json(job_to_json(job)).report == report
        error = InvalidAdapter("bad").with_details({REPORT_KEY: report.to_json()})
        failed = job_from_json(job_to_json(a_job().failed(error)))
        assert failed.report == report
        assert (failed.error.code, failed.error.details) == (error.code, {})
