"""20,000 inputs that nobody thought of: refused with one of the codes that are documented, or read; nothing else.

Every run has the same ones. `HILORA_FUZZ_INPUTS` and `HILORA_FUZZ_SEED` ask for more and for others.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.infra.archive import unpack
from services.registry.infra.assembly import assemble
from tests.contract.hostile.fuzzing import ARCHIVE, CONFIG_FILE, HEADER, INDEX, MISSHAPEN, SAMPLES_FILE, Target, inputs
from tests.contract.hostile.guard import ACCEPTED, outcome
from tests.contract.hostile.validator import VALIDATOR
from tests.fakes.registry_stack import ARCHIVE_LIMITS

NUM_INPUTS = int(os.environ.get("HILORA_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("HILORA_FUZZ_SEED", "0"))
SHARES = {HEADER: 0.3, ARCHIVE: 0.25, CONFIG_FILE: 0.25, INDEX: 0.1, SAMPLES_FILE: 0.1}
MAX_BYTES = 256 * 1024 * 1024
MAX_SECONDS = 5.0
NUM_RUN: Counter[str] = Counter()


def read(target: Target, data: bytes, folder) -> str:
    """The outcome of one input, which may leave nothing but files of an adapter in its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if target is ARCHIVE:
        archive = folder.parent / "archive"
        archive.write_bytes(data)
        work = partial(unpack, archive, folder, ARCHIVE_LIMITS)
    else:
        assert target.files is not None
        for name, content in target.files(data).items():
            (folder / name).write_bytes(content)
        work = partial(assemble if target is INDEX else VALIDATOR.check_upload, folder)
    code = outcome(work, max_bytes=MAX_BYTES, max_seconds=MAX_SECONDS)
    NUM_RUN[target.name] += 1
    assert code == ACCEPTED or code in target.codes, code
    return code


class TestDamage:
    @pytest.mark.parametrize("target", SHARES, ids=lambda target: target.name)
    def test_every_input_is_read_or_refused_with_a_documented_code(self, tmp_path, target):
        seen: Counter[str] = Counter()
        for number, data in enumerate(inputs(target, round(SHARES[target] * NUM_INPUTS), seed=SEED)):
            try:
                seen[read(target, data, tmp_path / "files")] += 1
            except BaseException as error:
                raise AssertionError(f"input {number} of seed {SEED}: {data[:400]!r}") from error
        assert len(seen) >= 3, "it gets past the first check"
        assert ACCEPTED in seen


class TestStructure:
    """The same by hypothesis, which makes a failing input small."""

    @pytest.mark.parametrize("target", SHARES, ids=lambda target: target.name)
    def test_misshapen_inputs_are_read_or_refused(self, tmp_path, target):
        @settings(
            max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(source=st.randoms(use_true_random=False))
        def check(source):
            read(target, MISSHAPEN[target.name](source), tmp_path / "files")

        check()


class TestTheCount:
    def test_so_many_were_run(self, capsys):
        with capsys.disabled():
            print(f"\nfuzzed input: {NUM_RUN.total()} run: {dict(NUM_RUN)}")
        # Where single tests were chosen, the others did not run.
        assert len(NUM_RUN) < len(SHARES) or NUM_RUN.total() >= NUM_INPUTS
