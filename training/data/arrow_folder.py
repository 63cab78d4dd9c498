"""Folders that the Hugging Face library `datasets` wrote with `save_to_disk`: Arrow files, mapped into memory."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from starflow.runtime.plain.errors import DataError, UsageError, first_line
from starflow.runtime.plain.image_file import decode_image, read_image
from starflow.runtime.plain.install_hint import install_hint
from starflow.training.data.conditions import checked_captions, checked_labels


class ArrowImages:
    """The images of one split, and its other columns."""

    shards = None  # a row is found by its place in the mapped files

    def __init__(self, rows: Any, image: str, where: str) -> None:
        from datasets import Image as ImageFeature

        self._rows, self._where = rows, where
        feature = self._feature(image, "image")
        if not isinstance(feature, ImageFeature):
            raise DataError(
                f"{where}: column {image} is {type(feature).__name__}, expected images; name them by data.image"
            )
        if not len(rows):
            raise DataError(f"{where}: holds no rows")
        self._column = image
        self._images = rows.select_columns([image]).cast_column(image, ImageFeature(decode=False))
        files = [Path(each["filename"]) for each in rows.cache_files]
        told = [(file.parent.name, file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        self.digest = hashlib.sha256(repr((image, len(rows), told)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int, mode: Literal["L", "RGB"]) -> Image.Image:
        """Decode an image; UsageError if it is damaged."""
        found, name = self._images[index][self._column], f"{self._where}, row {index}"
        if found is None:
            raise UsageError(f"{name}: has no image; leave the row out")
        if found["bytes"] is None:  # the folder was written with the names of files only
            return read_image(Path(found["path"]), mode)
        return decode_image(io.BytesIO(found["bytes"]), name, mode)

    def labels(self, column: str) -> tuple[Tensor, list[str] | None]:
        """A column of classes, int64 [N], and their names if the column has them."""
        feature = self._feature(column, "label")
        values = self._rows.select_columns([column]).with_format("arrow")[:][column]
        if getattr(feature, "dtype", "").rstrip("0123456789") not in ("int", "uint") or values.null_count:
            raise DataError(f"{self._where}: column {column} holds {feature}, expected whole numbers in every row")
        return checked_labels(values.to_numpy(), f"{self._where}: column {column}"), getattr(feature, "names", None)

    def captions(self, column: str) -> list[str]:
        """A column of texts."""
        self._feature(column, "caption")
        texts = self._rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{self._where}, row {row}: {column} is {type(text).__name__}, expected a caption")
        return checked_captions(texts, f"{self._where}: column {column}")

    def _feature(self, column: str, field: str) -> Any:
        if column not in self._rows.features:
            found = ", ".join(self._rows.features)
            raise DataError(f"{self._where}: found the columns {found}, but no {column}; name it by data.{field}")
        return self._rows.features[column]


def open_arrow_folder(path: Path, image: str) -> Mapping[str, ArrowImages]:
    """The splits of a folder by name; a folder without splits is `train`.

    Raises:
        UsageError: the folder does not exist, or `datasets` is not installed.
        DataError: `save_to_disk` did not write the folder, or the column `image` holds none.
    """
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise UsageError(f"data of kind huggingface need the package datasets: {install_hint('datasets')}") from None
    if not path.is_dir():
        raise UsageError(f"{path}: does not exist; data.path names a folder that save_to_disk wrote")
    try:
        found = load_from_disk(str(path))
    except Exception as error:  # it reports damage by the types of Arrow, JSON and the system
        raise DataError(f"{path}: is no folder of save_to_disk, or damaged: {first_line(error)}") from error
    if not isinstance(found, DatasetDict):
        return {"train": ArrowImages(found, image, str(path))}
    if "train" not in found:
        raise DataError(f"{path}: found the splits {', '.join(found)}, expected one named train")
    wanted = [name for name in ("train", "validation", "test") if name in found]
    return {name: ArrowImages(found[name], image, f"{path}, {name}") for name in wanted}
