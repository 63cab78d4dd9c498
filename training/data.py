"""Training data: read once, checked, held in memory; images as uint8."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from starflow.runtime.errors import DataError, RecipeError
from starflow.training.captions import encode_captions, read_captions
from starflow.training.config import AutoregressiveConfig, Conditioning, ModelConfig, StarflowConfig
from starflow.training.continuous.config import VelocityMlpConfig, VelocityTransformerConfig
from starflow.training.points import POINT_SETS
from starflow.training.recipe import DataSource, Digits8Source, FolderSource, NpzSource, PointsSource

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CONDITIONED = ("num_classes", "txt_size")  # the fields of a model that say whether it is conditioned
HOLDOUT_SEED = 20240  # fixed: every run of every recipe holds out the same images


@dataclass(frozen=True)
class Samples:
    """Images or points, and what they are conditioned on.

    Attributes:
        values: Samples uint8 [N, C, H, W], or points float32 [N, D].
        condition: int64 [N] class labels, float32 [N, T, W] text features, or None.
    """

    values: Tensor
    condition: Tensor | None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> "Samples":
        return Samples(self.values[index], None if self.condition is None else self.condition[index])


@dataclass(frozen=True)
class Dataset:
    """What is trained on, what is held out, and the condition that stands for "no condition".

    Attributes:
        null: the null class (int64 []) or the features of an empty text (float32 [T, W]); None without conditions.
    """

    train: Samples
    test: Samples
    conditioning: Conditioning
    null: Tensor | None

    def without_conditions(self) -> "Dataset":
        """The images alone."""
        return Dataset(replace(self.train, condition=None), replace(self.test, condition=None), Conditioning(), None)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def load_dataset(source: DataSource, cache: Path) -> Dataset:
    """Read a source.

    Args:
        source: The recipe's data section.
        cache: Folder where computed text features are kept.

    Raises:
        DataError: A file is missing, unreadable, or does not fit the others.
    """
    match source:
        case FolderSource():
            return _folder(source, cache)
        case NpzSource():
            return _npz(source)
        case PointsSource():
            generator = torch.Generator().manual_seed(HOLDOUT_SEED)
            return _split(POINT_SETS[source.shape](source.count, generator), None, source.holdout)
        case Digits8Source():
            from sklearn.datasets import load_digits

            digits = load_digits()
            pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
            labels = torch.from_numpy(digits.target.astype(np.int64))
            return _split(torch.from_numpy(pixels), labels, source.holdout, [str(digit) for digit in range(10)])


def fit_data(data: Dataset, model: ModelConfig) -> Dataset:
    """Return the data as a model takes it; an unconditional model gets the images alone.

    Raises:
        RecipeError: Images or conditions are not what the model takes.
    """
    shape = tuple(data.train.values.shape[1:])
    if isinstance(model, VelocityMlpConfig):
        if shape != (model.dimensions,):
            raise RecipeError(f"model: takes {_described((model.dimensions,))}, the data has {_described(shape)}")
        return data.without_conditions()
    if shape != (model.in_channels, model.img_size, model.img_size):
        expected = _described((model.in_channels, model.img_size, model.img_size))
        raise RecipeError(f"model: takes {expected}, the data has {_described(shape)}")
    if not any(getattr(model, field, 0) for field in CONDITIONED):
        return data.without_conditions()
    has, needs = _needs(data.conditioning, model)
    for field, value in needs.items():
        found = getattr(model, field, "a tarflow, which knows classes only")
        if found != value:
            raise RecipeError(f"model.{field}: found {found}, expected {value}, because the data has {has}")
    return data


def _needs(given: Conditioning, model: AutoregressiveConfig | VelocityTransformerConfig) -> tuple[str, dict[str, int]]:
    """What the data has to condition on, and the fields of the model that have to say so."""
    if given.kind == "none":
        return "no labels or features", {field: 0 for field in CONDITIONED if hasattr(model, field)}
    if given.kind == "features":
        return f"features [{given.tokens}, {given.width}]", {"txt_size": given.tokens, "txt_dim": given.width}
    if isinstance(model, StarflowConfig):
        return f"{given.num_classes} classes", {"txt_size": 1, "txt_dim": given.num_classes + 1}
    return f"{given.num_classes} classes", {"num_classes": given.num_classes}


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"points of {shape[0]} dimensions"
    return f"{shape[0]} channel(s) of {shape[2]}x{shape[1]}"


def _folder(source: FolderSource, cache: Path) -> Dataset:
    root = source.path
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.path names the folder that holds the images")
    if source.captions is not None and source.encoder is not None:
        captions = read_captions(source.captions, root)
        pixels = _read_all(list(captions), source)
        features = encode_captions([*captions.values(), ""], source.encoder, source.tokens, cache / "text_features.npz")
        return _split(pixels, features[:-1], source.holdout, null=features[-1])
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(SUFFIXES))})")
    loose = [file for file in files if file.parent == root]
    if len(loose) == len(files):
        return _split(_read_all(files, source), None, source.holdout)
    if loose:
        raise DataError(f"{loose[0]}: lies beside class folders; move it into one of them")
    names = sorted({file.relative_to(root).parts[0] for file in files})
    labels = torch.tensor([names.index(file.relative_to(root).parts[0]) for file in files])
    return _split(_read_all(files, source), labels, source.holdout, names)


def _read_all(files: list[Path], source: FolderSource) -> Tensor:
    """The files as uint8 [N, C, H, W]."""
    images: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = opened.convert(source.mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: cannot be read as an image: {error}") from None
        if source.size is not None:
            image = ImageOps.fit(image, (source.size, source.size), Image.Resampling.LANCZOS)
        array = np.asarray(image)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        if images[-1].shape != images[0].shape:
            (_, h, w), (_, first_h, first_w) = images[-1].shape, images[0].shape
            raise DataError(f"{file}: is {w}x{h}, {files[0]} is {first_w}x{first_h}; set data.size to resize them all")
    return torch.from_numpy(np.stack(images))


def _npz(source: NpzSource) -> Dataset:
    path = source.path
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.path names an .npz with `images` (and `labels` or `features`)")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive, or only a part of one")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from None
    train = _part(path, arrays, "")
    classes = None
    if "labels" in arrays:
        highest = max(int(arrays[name].max()) for name in ("labels", "test_labels") if name in arrays)
        classes = [str(label) for label in range(highest + 1)]
    if "test_images" not in arrays:
        return _split(train.values, train.condition, source.holdout, classes)
    test = _part(path, arrays, "test_")
    for name in ("images", "labels", "features"):
        shape, test_shape = (arrays[key].shape[1:] if key in arrays else None for key in (name, f"test_{name}"))
        if shape != test_shape:
            raise DataError(f"{path}: test_{name} holds entries of shape {test_shape}, {name} of shape {shape}")
    return _dataset(train, test, classes)


def _part(path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str) -> Samples:
    """Check and take `images` and `labels` or `features`, each with `prefix`, from an archive."""
    images = arrays.get(f"{prefix}images")
    if images is None:
        raise DataError(f"{path}: found {', '.join(arrays) or 'nothing'}, expected an array named {prefix}images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{path}: {prefix}images is {images.dtype} {images.shape}, expected uint8 [N, H, W(, C)]")
    if not len(images):
        raise DataError(f"{path}: {prefix}images holds no images")
    pixels = torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)).contiguous()
    condition: Tensor | None = None
    for name, kind, ndim in ((f"{prefix}labels", "iu", 1), (f"{prefix}features", "f", 3)):
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kind or array.ndim != ndim or len(array) != len(images):
            expected = "integers [N]" if ndim == 1 else "float32 [N, T, W]"
            raise DataError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {expected} with N = {len(images)}"
            )
        if condition is not None:
            raise DataError(f"{path}: holds {prefix}labels and {prefix}features, expected one of them")
        if ndim == 1 and array.min() < 0:
            raise DataError(f"{path}: {name} holds {array.min()}, expected classes from 0")
        condition = torch.from_numpy(array.astype(np.int64 if ndim == 1 else np.float32))
    return Samples(pixels, condition)


def _split(
    pixels: Tensor,
    condition: Tensor | None,
    holdout: float,
    classes: list[str] | None = None,
    null: Tensor | None = None,
) -> Dataset:
    """Hold out a part, the same every time."""
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(HOLDOUT_SEED))
    count = max(1, round(len(pixels) * holdout))
    if count >= len(pixels):
        raise DataError(f"{len(pixels)} image(s) are too few to hold some out; at least 2 are needed")
    everything = Samples(pixels, condition)
    return _dataset(everything[order[count:].sort().values], everything[order[:count].sort().values], classes, null)


def _dataset(train: Samples, test: Samples, classes: list[str] | None, null: Tensor | None = None) -> Dataset:
    condition = train.condition
    if condition is None:
        return Dataset(train, test, Conditioning(kind="none"), None)
    if classes is not None:
        conditioning = Conditioning(kind="class", num_classes=len(classes), class_names=tuple(classes))
        return Dataset(train, test, conditioning, torch.tensor(len(classes)))
    tokens, width = condition.shape[1:]
    null = torch.zeros(tokens, width) if null is None else null
    return Dataset(train, test, Conditioning(kind="features", tokens=tokens, width=width), null)
