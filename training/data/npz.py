"""Training data in a NumPy archive."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.plain.array_file import read_archive
from starflow.runtime.plain.errors import DataError, UsageError
from starflow.training.data.conditions import checked_captions, checked_labels

HELD_OUT = ("validation_", "test_")


class Archive:
    """The arrays of an .npz file.

    Raises:
        UsageError: the file does not exist.
        DataError: the file is damaged. The methods raise it for an array that is missing or of another kind.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.arrays: dict[str, NDArray[np.generic]] = read_archive(path)
        except FileNotFoundError:
            raise UsageError(
                f"{path}: does not exist; data.path names an .npz file with `images` and their conditions"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read as .npz: {error.strerror or error}") from None
        except ValueError as error:
            raise DataError(f"{path}: cannot be read as .npz: {error}") from None
        self.path = path
        # How the names of each part's arrays begin; a part that is held out has its own arrays or is split off.
        self.prefixes = ("", *(prefix for prefix in HELD_OUT if f"{prefix}images" in self.arrays))

    def images(self, prefix: str) -> Tensor:
        """The images of a part, uint8 [N, C, H, W]."""
        images = self.arrays.get(f"{prefix}images")
        if images is None:
            found = ", ".join(self.arrays) or "nothing"
            raise DataError(f"{self.path}: found {found}, expected an array named {prefix}images")
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise self._wrong(f"{prefix}images", "uint8 [N, H, W(, C)]")
        if not len(images):
            raise DataError(f"{self.path}: {prefix}images holds no images")
        return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)).contiguous()

    def captions(self, prefix: str, count: int) -> list[str]:
        """The captions of a part of `count` images."""
        name = f"{prefix}captions"
        captions = self.arrays.get(name)
        if captions is None:
            raise DataError(f"{self.path}: data.encoder needs captions, but there is no array named {name}")
        if captions.dtype.kind != "U" or captions.shape != (count,):
            raise self._wrong(name, f"str [N] with N = {count}")
        texts = [str(caption) for caption in captions]
        return checked_captions(texts, f"{self.path}: {name}")

    def condition(self, prefix: str, count: int) -> Tensor | None:
        """The labels int64 [N] or features float32 [N, T, W] of a part of `count` images, or None."""
        labels, features = (self.arrays.get(f"{prefix}{name}") for name in ("labels", "features"))
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
            raise self._wrong(f"{prefix}labels", f"integers [N] with N = {count}")
        if features is not None and (features.dtype.kind != "f" or features.ndim != 3 or len(features) != count):
            raise self._wrong(f"{prefix}features", f"float32 [N, T, W] with N = {count}")
        if labels is not None and features is not None:
            raise DataError(f"{self.path}: holds {prefix}labels and {prefix}features, expected one of them")
        if labels is not None:
            return checked_labels(labels, f"{self.path}: {prefix}labels")
        if features is None:
            return None
        with np.errstate(over="ignore"):  # what is infinite then is refused
            values = features.astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{self.path}: {prefix}features holds NaN or infinite values")
        return torch.from_numpy(values)

    def check_agreement(self, name: str) -> None:
        """Refuse parts whose arrays `name` differ in the shape of an entry, or of which only some have the array."""
        shapes = {
            prefix: self.arrays[f"{prefix}{name}"].shape[1:] if f"{prefix}{name}" in self.arrays else None
            for prefix in self.prefixes
        }
        for prefix, shape in shapes.items():
            if shape != shapes[""]:
                raise DataError(
                    f"{self.path}: {prefix}{name} holds entries of shape {shape}, {name} of shape {shapes['']}"
                )

    def _wrong(self, name: str, expected: str) -> DataError:
        found = self.arrays[name]
        return DataError(f"{self.path}: {name} is {found.dtype} {found.shape}, expected {expected}")
