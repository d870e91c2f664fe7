"""The ingest process with real Celery, Redis and disk, but a base and an encoder that load in no time.

The encoder waits while the file `hold` lies in the data folder, so that a test can decide when a job goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from services.registry import ingest_process, process_setup
from services.registry.settings import RegistrySettings
from tests.builders.adapters import MODULE_SHAPES
from tests.fakes.registry_ports import FakeBaseModel
from tests.fakes.router_encoder import HashEncoder

ROOT = Path(__file__).resolve().parents[2]


class HeldEncoder(HashEncoder):
    """See the module."""

    hold: Path

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def encode(self, texts: Any) -> Any:
        while self.hold.exists():
            time.sleep(0.02)
        return super().encode(texts)


def fake_base(*_: Any, **__: Any) -> FakeBaseModel:
    """In the place of the real base model's class."""
    return FakeBaseModel(MODULE_SHAPES)


def start(settings: RegistrySettings, log_path: Path) -> subprocess.Popen[bytes]:
    """Start such a process."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.builders.light_ingest"],
            env={**os.environ, **settings.to_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


def main() -> None:
    """Take jobs until SIGTERM."""
    settings = RegistrySettings()  # pyright: ignore[reportCallIssue]  (filled from the environment)
    HeldEncoder.hold = settings.data_dir / "hold"
    process_setup.TransformersBaseModel = fake_base  # pyright: ignore[reportAttributeAccessIssue]
    ingest_process.SentenceTransformerEncoder = HeldEncoder  # pyright: ignore[reportAttributeAccessIssue]
    ingest_process.build_ingest_worker(settings).serve()


if __name__ == "__main__":
    main()
