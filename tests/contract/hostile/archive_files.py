"""Archives from hell. Code by case, and the bytes of the archive."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable

from tests.builders.archives import (
    CONFIG,
    SAMPLES,
    WEIGHTS,
    adapter_files,
    config_bytes,
    tar_bytes,
    weights_bytes,
    zip_bytes,
    zstd_bytes,
)
from tests.contract.hostile.guard import ACCEPTED

_ZEROS = bytes(48 << 20)
_CENTRAL = b"PK\x01\x02"


def tar_block(kind: bytes, data: bytes, *, name: str = "x", size: int | None = None) -> bytes:
    """One header of a tar with its data; its size may lie."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data) if size is None else size
    return member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def pax(text: bytes) -> bytes:
    """A block of extended attributes, as it stands before a member."""
    return tar_block(tarfile.XHDTYPE, text)


def attributes(**fields: str) -> bytes:
    """A block of well-formed attributes; `__` in a name stands for a dot."""
    lines = (f" {name.replace('__', '.')}={value}\n".encode() for name, value in fields.items())
    return pax(b"".join(b"%d%s" % (len(line) + 2, line) for line in lines))


def before_a_sound_one(blocks: bytes) -> Callable[[], bytes]:
    return lambda: blocks + tar_bytes(adapter_files())


def patched_zip(offset: int, form: str, value: int) -> Callable[[], bytes]:
    """A zip in whose list of contents one number of the first member is another."""

    def build() -> bytes:
        data = bytearray(zip_bytes(adapter_files()))
        struct.pack_into(form, data, data.index(_CENTRAL) + offset, value)
        return bytes(data)

    return build


def renamed_zip(name: bytes) -> Callable[[], bytes]:
    """A sound zip whose samples have another name of the same length."""
    return lambda: zip_bytes(adapter_files()).replace(SAMPLES.encode(), name)


def in_folder(folder: str) -> Callable[[], bytes]:
    return lambda: tar_bytes({f"{folder}/{name}": data for name, data in adapter_files().items()})


def with_files(**more: bytes) -> Callable[[], bytes]:
    return lambda: zip_bytes({**adapter_files(), **{name.replace("__", "."): data for name, data in more.items()}})


def overlapping_zip() -> bytes:
    """Every line of its contents points to the same bytes (CVE-2024-0450's class)."""
    data = bytearray(zip_bytes(adapter_files()))
    first = data.index(_CENTRAL)
    second = data.index(_CENTRAL, first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def zip_in_zip() -> bytes:
    inner = zip_bytes({"zeros.bin": bytes(1 << 20)})
    return zip_bytes({**adapter_files(), "inner.zip": inner})


def zip64() -> bytes:
    data = zip_bytes(adapter_files())
    end = data.rfind(b"PK\x05\x06")
    return data[:end] + b"PK\x06\x07" + bytes(16) + data[end:]


def lzma_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(CONFIG, config_bytes())
    return buffer.getvalue()


def special(kind: bytes) -> Callable[[], bytes]:
    return lambda: tar_bytes(adapter_files(), special={"README.md": kind})


def gzip_of(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


ARCHIVES: dict[str, tuple[str, Callable[[], bytes]]] = {
    # paths
    "CVE-2007-4559: parent folder": ("unsafe_path", lambda: tar_bytes({f"../{CONFIG}": b"{}"})),
    "path.parent folder, later": ("unsafe_path", lambda: zip_bytes({f"a/../../{CONFIG}": b"{}"})),
    "path.backslashes": ("unsafe_path", lambda: zip_bytes({f"..\\..\\{CONFIG}": b"{}"})),
    "path.both slashes": ("unsafe_path", lambda: tar_bytes({f"a\\../..\\{CONFIG}": b"{}"})),
    "path.absolute": ("unsafe_path", lambda: tar_bytes({f"/etc/{CONFIG}": b"{}"})),
    "path.absolute with a backslash": ("unsafe_path", lambda: zip_bytes({f"\\{CONFIG}": b"{}"})),
    "path.share of Windows": ("unsafe_path", lambda: tar_bytes({f"//server/share/{CONFIG}": b"{}"})),
    "path.drive": ("unsafe_path", lambda: zip_bytes({f"C:\\{CONFIG}": b"{}"})),
    "path.drive without a slash": ("unsafe_path", lambda: tar_bytes({f"C:{CONFIG}": b"{}"})),
    "path.parent folder of a file passed over": ("unsafe_path", lambda: tar_bytes({"../README.txt": b""})),
    "path.parent folder as a folder": ("unsafe_path", lambda: zip_bytes({"../": b"", **adapter_files()})),
    "path.parent folder in attributes": ("unsafe_path", before_a_sound_one(attributes(path="../../etc/crontab"))),
    "path.parent folder in a long name": (
        "unsafe_path",
        before_a_sound_one(tar_block(tarfile.GNUTYPE_LONGNAME, b"../../etc/crontab\0")),
    ),
    "path.deep": ("nested_archive", lambda: zip_bytes({f"a/b/{CONFIG}": b"{}"})),
    "path.NUL in a zip": ("unsafe_path", renamed_zip(b"samples.jso\0x")),
    "path.NUL first": ("unreadable_archive", renamed_zip(b"\0amples.jsonl")),
    "path.percent signs mean nothing": (ACCEPTED, in_folder("%2e%2e")),
    "path.four dots mean nothing": (ACCEPTED, in_folder("....")),
    "path.dots of Unicode mean nothing": (ACCEPTED, in_folder("\u2024\u2024")),
    "path.line feed": ("unexpected_file", lambda: tar_bytes({f"{CONFIG}\n": b"{}"})),
    "path.no UTF-8": ("unexpected_file", lambda: tar_bytes({"evil\udcff.exe": b""})),
    "path.right to left": ("unexpected_file", lambda: zip_bytes({"adapter\u202enosj.exe": b""})),
    "path.long": ("unexpected_file", lambda: zip_bytes({"x" * 60_000: b""})),
    # links and devices
    "link.in a zip": ("link_in_archive", lambda: zip_bytes({}, symlinks={WEIGHTS: "/etc/passwd"})),
    "link.in a tar": ("link_in_archive", special(tarfile.SYMTYPE)),
    "link.hard": ("link_in_archive", special(tarfile.LNKTYPE)),
    "link.then a file through it": (
        "link_in_archive",
        lambda: tar_block(tarfile.SYMTYPE, b"", name="out") + tar_bytes({f"out/{CONFIG}": b"{}"}),
    ),
    "device.character": ("special_file_in_archive", special(tarfile.CHRTYPE)),
    "device.block": ("special_file_in_archive", special(tarfile.BLKTYPE)),
    "device.pipe": ("special_file_in_archive", special(tarfile.FIFOTYPE)),
    "device.in a zip": ("special_file_in_archive", patched_zip(38, "<L", 0o020666 << 16)),
    "sparse.GNU": ("special_file_in_archive", before_a_sound_one(tar_block(tarfile.GNUTYPE_SPARSE, b"", name=WEIGHTS))),
    "sparse.attributes": (
        "special_file_in_archive",
        before_a_sound_one(attributes(GNU__sparse__size="1000", GNU__sparse__map="0,1,9,1")),
    ),
    # members
    "twice": ("duplicate_member", lambda: zip_bytes({CONFIG: b"{}", f"a/{CONFIG}": b"{}"})),
    "twice in a tar": ("duplicate_member", lambda: tar_bytes({CONFIG: b"{}", f"./{CONFIG}": b"{}"})),
    "many": ("too_many_members", lambda: tar_bytes({f"{number}.md": b"" for number in range(9)})),
    "30,000 of them": ("too_many_members", lambda: zip_bytes({f"{number}.md": b"" for number in range(30_000)})),
    "an archive inside": ("unexpected_file", zip_in_zip),
    "CVE-2025-32434, CVE-2025-24357: a pickle inside": ("pickle_refused", with_files(adapter_model__bin=b"\x80\x04.")),
    "a pickle named in capitals": ("pickle_refused", with_files(TRAINING__PT=b"\x80\x04.")),
    "faiss 5400: an index inside": ("unexpected_file", with_files(pool__faiss=b"IxFI")),
    "CVE-2026-22807: code inside": ("unexpected_file", with_files(modeling_evil__py=b"import os; os.abort()")),
    "a shared library inside": ("unexpected_file", with_files(libevil__so=b"\x7fELF")),
    "CVE-2026-5760: templates and tokenizers are passed over": (
        ACCEPTED,
        with_files(
            chat_template__jinja=b"{{ cycler.__init__.__globals__.os.abort() }}",
            tokenizer_config__json=b'{"chat_template": "{{ 1/0 }}", "auto_map": {"AutoTokenizer": ["evil.T", null]}}',
            tokenizer__json=b"[" * 100_000,
        ),
    ),
    # bombs
    "bomb.zip": ("zip_bomb", lambda: zip_bytes({WEIGHTS: _ZEROS})),
    "bomb.tar.gz": ("zip_bomb", lambda: tar_bytes({WEIGHTS: _ZEROS}, compression="gz")),
    "bomb.tar.gz, passed over": ("zip_bomb", lambda: tar_bytes({"README.md": _ZEROS}, compression="gz")),
    "bomb.tar.zst": ("zip_bomb", lambda: zstd_bytes(tar_bytes({WEIGHTS: _ZEROS}), level=19)),
    "bomb.behind the last member": (ACCEPTED, lambda: gzip_of(tar_bytes(adapter_files()) + _ZEROS)),
    "bomb.window of zstd": (
        "zstd_window_too_large",
        lambda: zstd_bytes(tar_bytes({WEIGHTS: bytes(1 << 20)}), window_log=27),
    ),
    "bomb.too large unpacked": ("archive_too_large", lambda: tar_bytes({WEIGHTS: bytes(65 << 20)})),
    # sizes that lie
    "forged.zip member larger than it is, read as it is": (ACCEPTED, patched_zip(24, "<L", 1 << 30)),
    "forged.zip member smaller than it is": ("unreadable_archive", patched_zip(24, "<L", 10)),
    "forged.zip member packed larger than it is, read as it is": (ACCEPTED, patched_zip(20, "<L", 0xFFFFFFF0)),
    "forged.zip checksum": ("unreadable_archive", patched_zip(16, "<L", 1)),
    "forged.zip offset": ("unreadable_archive", patched_zip(42, "<L", 0xFFFFFFF0)),
    "CVE-2024-0450: zip members overlap": ("unreadable_archive", overlapping_zip),
    "forged.tar member of 8 exabytes": (
        "unreadable_archive",
        lambda: tar_block(tarfile.REGTYPE, b"x", name=WEIGHTS, size=1 << 62),
    ),
    "CVE-2025-8194: tar member of negative size": ("unreadable_archive", before_a_sound_one(attributes(size="-512"))),
    "forged.tar checksum": ("unreadable_archive", lambda: b"x" + tar_bytes(adapter_files())[1:]),
    "CVE-2024-6232: attributes searched in quadratic time": (
        "archive_too_large",
        before_a_sound_one(pax(b"1" * 1_000_000)),
    ),
    "attributes within attributes": ("archive_too_large", before_a_sound_one(attributes(path="abc") * 900)),
    "long names of long names": (
        "archive_too_large",
        before_a_sound_one(tar_block(tarfile.GNUTYPE_LONGNAME, b"a\0") * 900),
    ),
    # kinds
    "encrypted": ("encrypted_archive", patched_zip(8, "<H", 1)),
    "strongly encrypted": ("unreadable_archive", patched_zip(8, "<H", 0x40)),
    "zip64": ("zip64_archive", zip64),
    "rare compression": ("unsupported_compression", lzma_zip),
    "unknown compression": ("unsupported_compression", patched_zip(10, "<H", 99)),
    "rar": ("unreadable_archive", lambda: b"Rar!\x1a\x07\x01\x00" + bytes(2000)),
    "7z": ("unreadable_archive", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(2000)),
    "empty": ("unreadable_archive", lambda: b""),
    "cut.zip": ("unreadable_archive", lambda: zip_bytes(adapter_files())[:-30]),
    "cut.tar": ("unreadable_archive", lambda: tar_bytes(adapter_files())[:1100]),
    "cut.tar.gz": ("unreadable_archive", lambda: tar_bytes(adapter_files(), compression="gz")[:-200]),
    "cut.tar.zst": ("unreadable_archive", lambda: zstd_bytes(tar_bytes(adapter_files()))[:-200]),
    "gzip of gzip": ("unreadable_archive", lambda: gzip_of(tar_bytes(adapter_files(), compression="gz"))),
    "zst that is no tar": ("unreadable_archive", lambda: zstd_bytes(b"hello" * 1000)),
    "dictionary of zstd": ("unreadable_archive", lambda: b"\x28\xb5\x2f\xfd\x01\x00\x05" + bytes(30)),
    "garbage behind a gzip is not read": (
        ACCEPTED,
        lambda: tar_bytes(adapter_files(), compression="gz") + b"garbage" * 99,
    ),
    "garbage behind a tar is not read": (ACCEPTED, lambda: tar_bytes(adapter_files()) + weights_bytes()),
}
