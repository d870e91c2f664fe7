"""Archives from strangers, damaged anywhere: unpacked into the folder, or refused, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hilora.errors import InvalidAdapter
from services.registry.adapter_files import is_adapter_file
from services.registry.infra.archive import ArchiveLimits, unpack
from tests.builders.archives import CARD, CONFIG, WEIGHTS, tar_bytes, zip_bytes, zstd_bytes

FILES = {CONFIG: b"{}", WEIGHTS: b"weights" * 40, CARD: b"# card"}
LIMITS = ArchiveLimits(max_members=8, max_unpacked_bytes=1 << 20, max_ratio=100)
SOUND = {
    "zip": zip_bytes(FILES),
    "tar": tar_bytes(FILES),
    "tar.gz": tar_bytes(FILES, compression="gz"),
    "tar.zst": zstd_bytes(tar_bytes(FILES)),
}


def unpacked(folder, data):
    """Whether it was accepted; whatever happened, nothing lies there but files of an adapter, within the limits."""
    inside = folder / "inside"
    inside.mkdir()
    archive = folder / "archive"
    archive.write_bytes(data)
    try:
        unpack(archive, inside, LIMITS)
        is_accepted = True
    except InvalidAdapter as refusal:
        is_accepted = not (refusal.code and refusal.remedy)
    assert sorted(path.name for path in folder.iterdir()) == ["archive", "inside"]
    assert all(is_adapter_file(path.name) and path.is_file() and not path.is_symlink() for path in inside.iterdir())
    assert sum(path.stat().st_size for path in inside.iterdir()) <= LIMITS.max_unpacked_bytes
    return is_accepted


class TestUnpack:
    @pytest.mark.parametrize("kind", SOUND)
    def test_every_kind_gives_the_same_files(self, tmp_path, kind):
        assert unpacked(tmp_path, SOUND[kind])
        assert {path.name: path.read_bytes() for path in (tmp_path / "inside").iterdir()} == FILES

    @pytest.mark.parametrize("build", [zip_bytes, tar_bytes])
    def test_a_second_card_is_passed_over(self, tmp_path, build):
        nested = {f"sorter/{name}": data for name, data in FILES.items()}

        assert unpacked(tmp_path, build({CARD: b"# first", **nested}))
        assert (tmp_path / "inside" / CARD).read_bytes() == b"# first"

    @settings(max_examples=400, deadline=None)
    @example(kind="zip", changes=[(1900, 1)], length=381)
    @given(
        kind=st.sampled_from(sorted(SOUND)),
        changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
        length=st.integers(0, 10**6),
    )
    def test_damage_is_refused_or_harmless(self, tmp_path_factory, kind, changes, length):
        data = bytearray(SOUND[kind])
        for place, value in changes:
            data[place % len(data)] = value
        unpacked(tmp_path_factory.mktemp("archive"), bytes(data[: max(4, length % (2 * len(data)))]))

    @settings(max_examples=200, deadline=None)
    @given(name=st.text(min_size=1, max_size=40), build=st.sampled_from([zip_bytes, tar_bytes]))
    def test_a_member_of_any_name_stays_inside(self, tmp_path_factory, name, build):
        try:
            data = build({name: b"x", **FILES})
        except (ValueError, IndexError):
            return  # a name that not even the archive takes
        unpacked(tmp_path_factory.mktemp("archive"), data)

    @settings(max_examples=200, deadline=None)
    @given(
        head=st.sampled_from([b"PK\x03\x04", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b""]), tail=st.binary(max_size=2000)
    )
    def test_noise_is_refused(self, tmp_path_factory, head, tail):
        unpacked(tmp_path_factory.mktemp("archive"), head + tail)
