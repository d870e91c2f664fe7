"""Where the programs are that check and run the deployment files; needs nothing that is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("HILORA_DEPLOY_TOOLS", ROOT / ".deploy-tools"))


def tool(name: str) -> str:
    """Path of a program: of `scripts/install_deploy_tools.sh`, else of the machine.

    Raises:
        AssertionError: there is none, and the test that wants it must not pass.
    """
    own = TOOLS / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"NOT RUN: {name} is missing; scripts/install_deploy_tools.sh installs it"
    return found
