"""Generates `proto/gen/` from `proto/hilora_rpc/`; with `--check`, fails if the committed stubs differ.

One name on disk, on the wire and in Python: plain protoc flags, no rewriting of imports.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
GENERATED = SOURCE / "gen"
PACKAGE_MARKERS = {
    "hilora_rpc/__init__.py": '"""Generated messages and services; the sources are in proto/hilora_rpc."""\n',
    "hilora_rpc/v1/__init__.py": '"""Version 1 of the wire contract."""\n',
}


def generate(target: Path) -> None:
    """Write all stubs below `target`."""
    for marker, text in PACKAGE_MARKERS.items():
        path = target / marker
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # The plugins of this environment, whatever the PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    bundled = resources.files("grpc_tools") / "_proto"
    files = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.glob("hilora_rpc/**/*.proto"))
    exit_code = protoc.main(
        [
            "protoc",
            *plugins,
            f"--proto_path={SOURCE}",
            f"--proto_path={bundled}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *files,
        ]
    )
    if exit_code:
        raise SystemExit(f"protoc failed with exit code {exit_code}")


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths of the files that are missing on one side or differ."""

    def listing(folder: Path) -> set[Path]:
        return {p.relative_to(folder) for p in folder.rglob("*.py*") if "__pycache__" not in p.parts}

    both = listing(left) | listing(right)
    return sorted(
        str(path)
        for path in both
        if not (left / path).is_file()
        or not (right / path).is_file()
        or not filecmp.cmp(left / path, right / path, shallow=False)
    )


def main() -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        changed = differences(fresh, GENERATED)
        if arguments.check:
            for path in changed:
                print(f"proto/gen/{path} is out of date", file=sys.stderr)
            if changed:
                print("Run 'make proto' and commit the result.", file=sys.stderr)
            return 1 if changed else 0
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
