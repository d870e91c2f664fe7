"""What a report says about where and with what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Machine, software and code."""

    cpu: str
    num_cpus: int
    """CPUs that this process may use."""
    num_threads: int
    """Threads of torch."""
    load_before: float
    """Runnable processes of the last minute before the start: above 0.5, others were measuring, too."""
    platform: str
    python: str
    torch: str
    transformers: str
    peft: str
    commit: str
    """Short hash, `+` for uncommitted changes; empty outside a checkout."""
    has_native_kernels: bool


def describe_machine() -> Machine:
    """This machine, now."""
    from services.worker.kernels.native_ops import is_native_usable

    return Machine(
        cpu=_cpu_name(),
        num_cpus=len(os.sched_getaffinity(0)),
        num_threads=torch.get_num_threads(),
        load_before=round(os.getloadavg()[0], 2),
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=_version("transformers"),
        peft=_version("peft"),
        commit=_commit(),
        has_native_kernels=is_native_usable(dtype=torch.float32, device=torch.device("cpu")),
    )


def resident_bytes() -> int:
    """Main memory that this process holds. Linux only."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "--short=10", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 -- our words
