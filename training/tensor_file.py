"""Weights in a safetensors file: written one tensor at a time, and read by name; and the folder the file lies in."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.own_folder import FolderKind
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plain.regular_file import open_regular
from starflow.runtime.plain.tensor_header import METADATA, read_tensor_header
from starflow.training.flow import Flow
from starflow.training.state_check import check_tensors

# Where a file of ours keeps its digest. Either of the two tells that there is one, so that no damaged byte hides it.
DIGEST, DIGEST_START = "starflow", "sha256:"
NO_DIGEST = "0" * 64
MOST_TENSORS = 50_000  # published models have up to two thousand; each takes a system call or two

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_tensors(path: Path, state: Mapping[str, Tensor], *, half: bool, progress: Report = no_report) -> None:
    """Write a safetensors file without holding more than one tensor of it.

    Args:
        state: Floating-point tensors; they may be mapped from another file.
        half: Store them as float16.

    Raises:
        CheckpointError: a tensor is not floating-point, holds NaN or infinity, or does not fit into float16.
    """
    # "format" is what diffusers and transformers expect. The digest covers the whole file, with zeros in its own place.
    header: dict[str, dict[str, object]] = {METADATA: {"format": "pt", DIGEST: f"{DIGEST_START}{NO_DIGEST}"}}
    end = 0
    # Widest numbers first: every tensor then begins at a multiple of its number's size.
    names = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    for name in names:
        value = state[name]
        if value.dtype not in TYPES:
            raise CheckpointError(f"{name} holds {value.dtype}; a checkpoint holds floating-point numbers")
        dtype = torch.float16 if half else value.dtype
        start, end = end, end + value.numel() * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for done, name in enumerate(names):
            content = _stored(name, state[name], half=half).reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            digest.update(content)
            progress(done + 1, len(names))
        file.seek(head.index(NO_DIGEST.encode()))
        file.write(digest.hexdigest().encode())


def _stored(name: str, value: Tensor, *, half: bool) -> Tensor:
    value = value.detach().cpu()
    if not value.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity; these weights cannot be used")
    stored = value.half() if half else value
    if half and not stored.isfinite().all():
        raise CheckpointError(f"{name} does not fit into float16; store these weights in float32")
    return stored.contiguous()


def check_digest(path: Path) -> None:
    """Compare a safetensors file with its header: its size, and the digest if there is one.

    Raises:
        CheckpointError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        start, header = read_tensor_header(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a safetensors file, or damaged ({error}); copy it again") from None
    stated = _stated_digest(header.get(METADATA))
    if stated is None:
        return
    digest = hashlib.sha256(start.replace(stated.encode(), NO_DIGEST.encode(), 1))
    with open_regular(path) as file:
        file.seek(len(start))
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != stated:
        raise CheckpointError(f"{path}: is damaged: it is not what was written here; copy it again")


def check_count(path: Path, names: Sequence[str]) -> None:
    """See that a file holds as many tensors as models have.

    Raises:
        CheckpointError: it holds far more.
    """
    if len(names) > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds {len(names):,} tensors, expected at most {MOST_TENSORS:,}")


def _stated_digest(metadata: object) -> str | None:
    stated = (
        str(value).removeprefix(DIGEST_START)
        for name, value in (metadata.items() if isinstance(metadata, dict) else ())
        if name == DIGEST or str(value).startswith(DIGEST_START)
    )
    return next(stated, None)


class CheckpointTensors(Mapping[str, Callable[[], NDArray[np.float32]]]):
    """A checkpoint's tensors by name: each value is a function that reads its tensor as float32.

    The file is mapped anew for every read: a mapping that lasts would keep all that was ever read in memory.

    Raises:
        CheckpointError: the file is damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            read_tensor_header(path)
            with safe_open(path, framework="pt") as file:
                check_count(path, file.keys())
                self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged or truncated ({error}); copy it again") from None

    def __getitem__(self, name: str) -> Callable[[], NDArray[np.float32]]:
        if name not in self._shapes:
            raise KeyError(name)

        def read() -> NDArray[np.float32]:
            with safe_open(self.path, framework="pt") as file:
                array: NDArray[np.float32] = file.get_tensor(name).float().numpy()
            return array

        return read

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shapes))

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def check(self, model: Flow) -> None:
        """Compare names and shapes with what `model` needs, without reading data; CheckpointError if they differ."""
        check_tensors(str(self.path), self._shapes, model)

    def load(self, model: Flow) -> dict[str, Tensor]:
        """The state dict of `model`, float32; buffers it does not read are left out.

        Raises:
            CheckpointError: see `check` and `check_digest`.
        """
        self.check(model)
        check_digest(self.path)
        return {name: torch.from_numpy(self[name]()) for name in model.state_dict()}

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def checkpoint_folder(
    folder: str | os.PathLike[str],
    kind: FolderKind,
    extra_files: Mapping[str, str] | None,
    *,
    replace: bool = True,
    source: Path | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder that takes the name `folder` on success; the text files of `extra_files` join it.

    `kind`, `replace` and `source` are those of `atomic_folder`.

    Raises:
        CheckpointError: the disk is full.
        UsageError: `folder` exists and may not be replaced, or cannot be created.
    """
    with atomic_folder(folder, kind, replace=replace, source=source) as temporary:
        try:
            yield temporary
            for name, text in (extra_files or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from None
