from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_gpu.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_it_runs_on_a_cpu_with_a_tiny_shape(tmp_path):
    out = tmp_path / "gpu.json"

    done = run("--device", "cpu", "--shape", "tiny", "--batch", "2", "--rounds", "1", "--out", str(out))

    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert json.loads(done.stdout) == report
    assert [(row["popularity"], row["batch_size"]) for row in report["decode"]] == [
        ("resident_pool", 2),
        ("all_distinct", 2),
    ]
    assert report["kernels"] is None
    assert "roofline" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = run()

    assert done.returncode == 1
    assert "no GPU here" in done.stderr
    assert "--device cpu --shape tiny" in done.stderr


def test_it_needs_torch_and_transformers_alone():
    """Nothing that a bare GPU machine lacks is imported on the way."""
    code = (
        "import sys; import hilora_lab.bench.gpu_bench, hilora_lab.bench.gpu_kernels;"
        "lacking = {'grpc', 'fastapi', 'redis', 'celery', 'peft', 'typer', 'rich', 'pydantic', 'matplotlib'};"
        "print(sorted(lacking & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.strip() == "[]"
