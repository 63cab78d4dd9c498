"""Files of `torch.save`: damaged, and made on purpose with code, lies and bombs in them."""

import io
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from numpy.random import Generator

from tests.attack.byte_damage import damaged_bytes

MARK = os.path.join(tempfile.gettempdir(), "starflow-attack-ran-code")  # a file that no attempt may write


class _Code:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (MARK, "w"))


def saved(content: object, *, archive: bool = True) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def hostile_content(draw: Generator, state: dict[str, torch.Tensor]) -> tuple[bytes, str]:
    """A file that torch would write of something else than a plain state dict."""
    name = list(state)[draw.integers(len(state))]
    tensor = state[name]
    others: list[tuple[str, Callable[[], Any]]] = [
        ("code", lambda: _Code()),
        ("code beside tensors", lambda: {**state, "x": _Code()}),
        ("a list", lambda: list(state.values())),
        ("nothing", dict),
        ("a number", lambda: 7),
        ("numbers for names", lambda: dict(enumerate(state.values()))),
        (f"{name} missing", lambda: {key: value for key, value in state.items() if key != name}),
        (f"{name} twice", lambda: {**state, f"module.{name}": tensor}),
        (f"{name} transposed", lambda: {**state, name: tensor.reshape(-1)}),
        (f"{name} empty", lambda: {**state, name: tensor[:0]}),
        (f"{name} of NaN", lambda: {**state, name: torch.full_like(tensor, torch.nan)}),
        (f"{name} sparse", lambda: {**state, name: tensor.to_sparse()}),
        (f"{name} on meta", lambda: {**state, name: tensor.to("meta")}),
        (f"{name} complex", lambda: {**state, name: tensor.to(torch.complex64)}),
        (f"{name} of integers", lambda: {**state, name: tensor.to(torch.int64)}),
        (f"{name} boolean", lambda: {**state, name: tensor.bool()}),
        (f"{name} of 8 bits", lambda: {**state, name: tensor.to(torch.float8_e4m3fn)}),
        (f"{name} quantised", lambda: {**state, name: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)}),
        (f"{name} expanded", lambda: {**state, name: torch.zeros(1).expand(2**40)}),
        (f"{name} of a thousand dimensions", lambda: {**state, name: torch.zeros([1] * 60)}),
        (f"{name} as a parameter", lambda: {**state, name: torch.nn.Parameter(tensor)}),
        ("a name with control characters", lambda: {**state, "x\x1b[31m\nx": tensor}),
        ("a name of a megabyte", lambda: {**state, "x" * 2**20: tensor}),
        ("nested deeply", lambda: _nested(200)),
        ("under `model`", lambda: {"model": state}),
        ("in half precision", lambda: {key: value.half() for key, value in state.items()}),
        ("in double precision", lambda: {key: value.double() for key, value in state.items()}),
    ]
    how, make = others[draw.integers(len(others))]
    with warnings.catch_warnings(action="ignore"):  # PyTorch would rather not make some of them any more
        return saved(make(), archive=draw.random() < 0.7 or "meta" in how), how


def damaged_archive(draw: Generator, content: bytes) -> tuple[bytes, str]:
    """The zip archive with other members, or with other bytes in one of them and no matching checksum."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    members = archive.infolist()
    member = members[draw.integers(len(members))]
    kinds: list[Callable[[], tuple[bytes, str]]] = [
        lambda: (_written(archive, without=member.filename), f"without {member.filename}"),
        lambda: (_written(archive, again=member.filename), f"{member.filename} twice"),
        lambda: (_written(archive, changed=(member.filename, b"")), f"{member.filename} empty"),
        lambda: (_written(archive, changed=(member.filename, draw.bytes(61))), f"{member.filename} of 61 bytes"),
        lambda: (_written(archive, changed=(member.filename, _bomb())), f"{member.filename}: a bomb of pickled lists"),
        lambda: (
            _written(archive, changed=(member.filename, bytes(2**28)), packed=True),
            f"{member.filename}: 256 MiB packed",
        ),
        lambda: (_written(archive, packed=True), "all members packed"),
        lambda: (_written(archive, renamed=(member.filename, "../../outside")), f"{member.filename} renamed"),
        *[lambda: _within(draw, content, member)] * 4,
    ]
    return kinds[draw.integers(len(kinds))]()


def _within(draw: Generator, content: bytes, member: zipfile.ZipInfo) -> tuple[bytes, str]:
    """Damage to the bytes of a member, in its place."""
    name, extra = struct.unpack("<HH", content[member.header_offset + 26 : member.header_offset + 30])
    start = member.header_offset + 30 + name + extra
    part = content[start : start + member.compress_size]
    if not part:
        return content + b"\x00", "one byte more"
    changed, note = damaged_bytes(draw, part)
    changed = changed[: len(part)].ljust(len(part), b"\x00")
    return content[:start] + changed + content[start + len(part) :], f"{member.filename}: {note}"


def _written(
    archive: zipfile.ZipFile,
    *,
    without: str = "",
    again: str = "",
    changed: tuple[str, bytes] = ("", b""),
    renamed: tuple[str, str] = ("", ""),
    packed: bool = False,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as new:
        for name in archive.namelist():
            if name == without:
                continue
            content = changed[1] if name == changed[0] else archive.read(name)
            new.writestr(renamed[1] if name == renamed[0] else name, content)
            if name == again:
                new.writestr(f"{name}.again", content)
    return file.getvalue()


def _bomb() -> bytes:
    """A pickle of a kilobyte that stands for a list of 2^40 entries."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    return pickle.dumps(value)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
