"""Small sets of images in every format that holds them on disk, written by the formats' own libraries."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

SHARDS = 4


def digits(count: int = 120) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 8, 8] that all differ, and ten classes [N]."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 10


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_shards(folder: Path, images: NDArray[np.uint8], shards: int = SHARDS, **columns: Sequence[Any]) -> str:
    """Shards of equal size, whose samples have these files beside their images; the pattern that names the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, places in enumerate(np.array_split(np.arange(len(images)), shards)):
        with TarWriter(str(folder / f"{number:03}.tar")) as writer:
            for place in places:
                others = {kind: values[place] for kind, values in columns.items()}
                writer.write({"__key__": f"{place:06}", "png": png(images[place]), **others})
    return str(folder / f"{{000..{shards - 1:03}}}.tar")


def rows(images: NDArray[np.uint8], labels: NDArray[np.int64], captions: Sequence[str] | None = None) -> Dataset:
    """The same for `save_to_disk`, in several Arrow files."""
    columns = {"image": [{"bytes": png(image), "path": None} for image in images], "digit": labels.tolist()}
    features = Features({"image": ImageFeature(), "digit": ClassLabel(names=[f"digit {each}" for each in range(10)])})
    if captions is not None:
        columns["text"], features["text"] = list(captions), Value("string")
    return Dataset.from_dict(columns, features=features)
