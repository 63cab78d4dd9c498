"""WebDataset's shards: uncompressed tar files, in which files that differ only in their suffix are one sample.

Headers are read once, and then every image is found by its place in its shard. So samples are held out, shuffled and found
again after a stop as those of any other source, and only the images of a few batches are in memory.
"""

import glob
import hashlib
import io
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.runtime.plain.image_file import decode_image
from starflow.runtime.plain.limits import MOST_CAPTION
from starflow.runtime.plain.progress import progress_bar
from starflow.training.data.conditions import checked_captions, checked_labels
from starflow.training.data.image_folder import SUFFIXES

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # the key of a sample, and what one of its files is
MOST_TEXT = 4 * MOST_CAPTION  # bytes in UTF-8
BLOCK = 512  # bytes of a header, which stands before its file


@dataclass
class _Columns:
    """What is known of every sample."""

    shards: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))  # of an image in its shard, in bytes
    sizes: "array[int]" = field(default_factory=lambda: array("q"))  # of an image, in bytes
    labels: "array[int]" = field(default_factory=lambda: array("q"))
    captions: list[str] = field(default_factory=list)


class TarShards:
    """The images of some shards, and their labels or captions.

    Args:
        patterns: Paths, with `{000..031}` for a range of numbers, or with `*`.
        captioned: Whether every sample needs a caption; labels do not count then.

    Raises:
        UsageError: a shard does not exist.
        DataError: a shard is damaged or no tar file; a sample has no image or several, or lacks a label or caption.
    """

    def __init__(self, patterns: Sequence[str], *, captioned: bool) -> None:
        self._files = [file for pattern in patterns for file in shard_files(pattern)]
        columns, digest = _Columns(), hashlib.sha256()
        with progress_bar("shards") as report:
            for number, file in enumerate(self._files):
                status = file.stat()
                digest.update(f"{file.name!r} {status.st_size} {status.st_mtime_ns}\n".encode())
                for sample in _samples(file):
                    image = sample.image()
                    columns.shards.append(number)
                    columns.offsets.append(image.offset_data)
                    columns.sizes.append(image.size)
                    if captioned:
                        columns.captions.append(sample.text("txt", "data.encoder needs a caption for every image"))
                    elif "cls" in sample.files or columns.labels:
                        columns.labels.append(sample.label())
                    if columns.labels and len(columns.labels) < len(columns.shards):
                        raise DataError(
                            f"{sample.name}: has a .cls, but earlier samples have none; give all of them one"
                        )
                report(number + 1, len(self._files))
        if not columns.shards:
            raise DataError(
                f"{', '.join(patterns)}: found no samples in {len(self._files)} shard(s), expected KEY.jpg or .png"
            )
        where = f"{', '.join(patterns)}: a sample"
        self.labels = (
            checked_labels(np.array(columns.labels), f"{where}'s .cls") if columns.labels else None
        )  # int64 [N]
        self.captions = checked_captions(columns.captions, f"{where}'s .txt") if captioned else None
        self._offsets, self._sizes = columns.offsets, columns.sizes
        self.shards = torch.tensor(columns.shards)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def image(self, index: int, mode: Literal["L", "RGB"]) -> Image.Image:
        """Decode an image; UsageError if it is damaged, or its shard is gone."""
        path = self._files[int(self.shards[index])]
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[index] - BLOCK)
                header, content = file.read(BLOCK), file.read(self._sizes[index])
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        name = header[:100].rstrip(b"\0").decode(errors="replace")
        return decode_image(io.BytesIO(content), f"{path}, {name}", mode)


def shard_files(pattern: str) -> list[Path]:
    """The files that `out/{000..031}.tar` or `out/*.tar` names; UsageError if one does not exist, or none does."""
    if found := RANGE.search(pattern):
        first, last = found.groups()
        numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        return [
            file
            for number in numbers
            for file in shard_files(pattern[: found.start()] + number + pattern[found.end() :])
        ]
    files = (
        [pattern] if os.path.isfile(pattern) else sorted(name for name in glob.glob(pattern) if os.path.isfile(name))
    )
    if not files:
        raise UsageError(
            f"{pattern}: does not exist; data.shards names tar files of this machine, such as out/{{000..031}}.tar"
        )
    return [Path(file) for file in files]


@dataclass(frozen=True)
class _Sample:
    """The files of one sample, by what their names say they are."""

    path: Path
    tar: tarfile.TarFile
    key: str
    files: dict[str, tarfile.TarInfo]

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.path}, sample {self.key}"

    def image(self) -> tarfile.TarInfo:
        """The file that is its image."""
        images = [info for kind, info in self.files.items() if f".{kind.rpartition('.')[2]}" in SUFFIXES]
        if len(images) != 1:
            found = ", ".join(self.files)
            raise DataError(
                f"{self.name}: found {len(images)} images ({found}), expected one of {', '.join(sorted(SUFFIXES))}"
            )
        return images[0]

    def text(self, kind: str, why: str) -> str:
        """The text of one of its files."""
        if kind not in self.files:
            raise DataError(f"{self.name}: has no .{kind}; {why}")
        file = self.tar.extractfile(self.files[kind])
        assert file is not None
        try:
            return file.read(MOST_TEXT).decode().strip()
        except UnicodeDecodeError:
            raise DataError(f"{self.name}: its .{kind} is no text in UTF-8") from None

    def label(self) -> int:
        """Its class."""
        text = self.text("cls", "other samples have one; give all of them their class, or none")
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise DataError(f"{self.name}: its .cls holds {text[:20]!r}, expected the number of a class")
        return int(text)


def _samples(path: Path) -> Iterator[_Sample]:
    """The samples of a shard, in its order."""
    try:
        with tarfile.open(path, "r:") as tar:
            named = ((NAME.fullmatch(info.name), info) for info in tar if info.isreg())
            pairs = ((found[1], found[2].lower(), info) for found, info in named if found)
            for key, group in groupby(pairs, key=lambda pair: pair[0]):
                yield _Sample(path, tar, key, {kind: info for _, kind, info in group})
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except tarfile.TarError as error:
        raise DataError(f"{path}: is damaged, or no uncompressed tar file ({error}); write the shard again") from None
