"""NumPy's files: what their headers claim is compared with what they hold, before it costs anything."""

import io
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.runtime.plain.array_file import read_archive, read_array
from starflow.runtime.plain.limits import HARMLESS_BYTES
from tests.flipped_bits import read_flipped


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode()


def described(shape: object, descr: str = "<f4") -> bytes:
    return header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(6, dtype=">i4"),
        np.array(2.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.arange(3, dtype=np.float16),
    ],
)
def test_arrays_are_those_that_numpy_wrote(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype and np.array_equal(found, array)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=array, names=np.array(["é", "b"]))
        stored = read_archive(tmp_path / "a.npz")
        assert stored.keys() == {"x", "names"} and np.array_equal(stored["x"], array)
        assert list(stored["names"]) == ["é", "b"]


BAD: dict[str, tuple[bytes, str]] = {
    "terabytes": (described("(1000000000000,)"), "says 4,000,000,000,000 bytes, but 0 are there"),
    "beyond 64 bits": (described("(99999999999999999999999, 99999999999999999)"), "which is no shape"),
    "no values along a length beyond 64 bits": (described("(0, 99999999999999999999)"), "which is no shape"),
    "negative": (described("(-1, -5)"), "which is no shape"),
    "truth as a length": (described("(True,)") + bytes(4), "which is no shape"),
    "one too few": (described("(3,)") + bytes(8), "says 12 bytes, but 8 are there"),
    "text": (described("(2,)", "<U1") + bytes(8), "holds str32, expected numbers"),
    "long text": (described("(1,)", "<U99999999"), "expected numbers"),
    "objects": (described("(1,)", "|O") + b"\x80\x04.", "holds object, expected numbers"),
    "dates": (described("(1,)", "<M8[D]") + bytes(8), "expected numbers"),
    "complex": (described("(1,)", "<c8") + bytes(8), "holds complex64, expected numbers"),
    "structure": (
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n") + bytes(4),
        "expected numbers",
    ),
    "deep": (header("(" * 9000 + "\n"), "is not a .npy array"),
    "code": (header("__import__('os').system('id')\n"), "is not a .npy array"),
    "header longer than the file": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "is not a .npy array"),
    "another version": (b"\x93NUMPY\x09\x00\x02\x00{}", "is not a .npy array"),
    "empty": (b"", "is not a .npy array"),
    "archive": (b"PK\x03\x04" + bytes(100), "is not a .npy array"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_array_of_numbers(kind: str, tmp_path: Path) -> None:
    content, found = BAD[kind]
    (tmp_path / "a.npy").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=found) as caught:
        read_array(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=rf"x\.npy: .*{found}"):
        read_archive(tmp_path / "a.npz", "fiub")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_a_sparse_file_larger_than_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(described(f"({1 << 42},)", "|u1"))
        file.truncate(2 << 42)
    with pytest.raises(ValueError, match=r"takes 4096.00 GiB of memory, but only"):
        read_array(tmp_path / "a.npy")


def archive_of_zeros(path: Path, count: int) -> None:
    """An archive of uint8 zeros [count]."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(described(f"({count},)", "|u1"))
        for _ in range(count >> 20):
            file.write(bytes(1 << 20))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    archive_of_zeros(tmp_path / "a.npz", HARMLESS_BYTES + (1 << 20))
    with pytest.raises(ValueError, match="grows more than 100 times; store it without compression"):
        read_archive(tmp_path / "a.npz")
    archive_of_zeros(tmp_path / "a.npz", 16 << 20)  # grows as much, but does no harm
    assert read_archive(tmp_path / "a.npz")["x"].shape == (16 << 20,)


@pytest.mark.parametrize("claimed", [1 << 10, 1 << 29])
def test_sizes_that_lie(claimed: int, tmp_path: Path) -> None:
    archive_of_zeros(tmp_path / "a.npz", 1 << 20)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", claimed)  # its size, as the directory states it
    (tmp_path / "a.npz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if claimed < 1 << 20:
        with pytest.raises(ValueError, match=r"x\.npy: it is not a .npy array"):
            read_archive(tmp_path / "a.npz")
    else:  # the array ends where it ends, and its checksum is right
        assert read_archive(tmp_path / "a.npz")["x"].shape == (1 << 20,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_no_flipped_bit_changes_an_array(tmp_path: Path) -> None:
    path, values = tmp_path / "a.npz", np.arange(500, dtype=np.float32)
    np.savez(path, x=values)
    places = np.random.default_rng(0).choice(8 * path.stat().st_size, 300, replace=False)
    for place, found in read_flipped(path, places, read_archive, ValueError):
        assert all(np.array_equal(array, values) for array in found.values()), place


def test_what_comes_after_an_array_is_not_left_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", described("(3,)") + bytes(12) + b"more")
    with pytest.raises(ValueError, match=r"x\.npy: it holds more than its header says"):
        read_archive(tmp_path / "a.npz")


@pytest.mark.parametrize("bit", [1, 0x41])
def test_entries_that_cannot_be_read(bit: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    content = bytearray(buffer.getvalue())
    content[6] |= bit  # encrypted, in the entry's header and in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= bit
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged"):
        read_archive(tmp_path / "a.npz")
