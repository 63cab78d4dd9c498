"""Training data: read once, checked, held in memory; images as uint8."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from starflow.runtime.plain.errors import DataError, RecipeError, UsageError
from starflow.training.autoencoder.latent_space import LatentSpace
from starflow.training.config import AutoregressiveConfig, Conditioning, ModelConfig, StarflowConfig, TextEncoding
from starflow.training.continuous.config import VelocityMlpConfig, VelocityTransformerConfig
from starflow.training.points import POINT_SETS
from starflow.training.recipe import DataSource, Digits8Source, FolderSource, NpzSource, PointsSource
from starflow.training.text.captions import read_captions
from starflow.training.text.text_features import TextFeatures, caption_features

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CONDITIONED = ("num_classes", "txt_size")  # the fields of a model that say whether it is conditioned
HOLDOUT_SEED = 20240  # fixed: every run of every recipe holds out the same images


class Batch(NamedTuple):
    """Samples on a device.

    Attributes:
        values: As in `Samples`.
        condition: int64 [B] class labels, float32 [B, T, W] text features, or None.
        mirrored: As in `Samples`.
    """

    values: Tensor
    condition: Tensor | None
    mirrored: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Images, latents or points, and what they are conditioned on.

    Attributes:
        values: Images uint8 [N, C, H, W], latents of images float16 [N, C, h, w] not scaled yet, or points float32 [N, D].
        condition: int64 [N] class labels, text features of N captions or as float32 [N, T, W], or None.
        mirrored: Latents of the mirror images, shaped as `values`; None where there are none.
    """

    values: Tensor
    condition: Tensor | TextFeatures | None
    mirrored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> "Samples":
        condition = None if self.condition is None else self.condition[index]
        return Samples(self.values[index], condition, None if self.mirrored is None else self.mirrored[index])

    def to(self, device: torch.device) -> Batch:
        condition = self.condition.padded() if isinstance(self.condition, TextFeatures) else self.condition
        return Batch(
            self.values.to(device),
            None if condition is None else condition.to(device),
            None if self.mirrored is None else self.mirrored.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(part.nbytes for part in (self.values, self.condition, self.mirrored) if part is not None)

    def resident(self, device: torch.device) -> "Samples":
        """The same on a device, where batches need not be brought to."""
        condition = None if self.condition is None else self.condition.to(device)
        mirrored = None if self.mirrored is None else self.mirrored.to(device)
        return Samples(self.values.to(device), condition, mirrored)


@dataclass(frozen=True)
class Dataset:
    """What is trained on, what is held out, and the condition that stands for "no condition".

    Attributes:
        null: the null class (int64 []) or the features of an empty text (float32 [T, W]); None without conditions.
        text: How captions became features; None without captions.
        latents: Of which autoencoder the values are latents; None if they are images or points.
    """

    train: Samples
    test: Samples
    conditioning: Conditioning
    null: Tensor | None
    text: TextEncoding | None = None
    latents: LatentSpace | None = None

    @property
    def kind(self) -> Literal["images", "latents", "points"]:
        """What the values are."""
        if self.latents is not None:
            return "latents"
        return "images" if self.train.values.dtype == torch.uint8 else "points"

    def as_float(self, values: Tensor) -> Tensor:
        """Values as a model takes them: images in [-1, 1], latents scaled, points as they are; float32."""
        if self.latents is not None:
            return self.latents.scaled(values)
        return to_float(values) if self.kind == "images" else values

    def without_conditions(self) -> "Dataset":
        """The images alone."""
        train, test = (replace(part, condition=None) for part in (self.train, self.test))
        return replace(self, train=train, test=test, conditioning=Conditioning(), null=None, text=None)


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
            return _npz(source, cache)
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
        raise UsageError(f"{root}: does not exist; data.path names the folder that holds the images")
    if source.captions is not None:
        captions = read_captions(source.captions, root)
        features, null = _encoded(source, list(captions.values()), cache)
        data = _split(_read_all(list(captions), source), features, source.holdout, null=null)
        return replace(data, text=source.text)
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


def _encoded(source: FolderSource | NpzSource, captions: list[str], cache: Path) -> tuple[TextFeatures, Tensor]:
    """The features of N captions, and those of the empty one, float32 [T, W]."""
    assert source.text is not None
    features = caption_features([*captions, ""], source.text, source.tokens, cache / "text_features.npz")
    every = torch.arange(len(captions))
    return features[every], features[every[-1:] + 1].padded()[0]


def _npz(source: NpzSource, cache: Path) -> Dataset:
    path = source.path
    arrays = _read_npz(path)
    prefixes = [prefix for prefix in ("", "test_") if not prefix or f"{prefix}images" in arrays]
    images = [_images(path, arrays, prefix) for prefix in prefixes]
    classes, null = None, None
    if source.text is not None:
        captions = [
            _captions(path, arrays, prefix, len(pixels)) for prefix, pixels in zip(prefixes, images, strict=True)
        ]
        features, null = _encoded(source, [caption for part in captions for caption in part], cache)
        places = torch.arange(len(features)).split([len(part) for part in captions])
        parts = [Samples(pixels, features[place]) for pixels, place in zip(images, places, strict=True)]
    else:
        parts = [
            Samples(pixels, _condition(path, arrays, prefix, len(pixels)))
            for prefix, pixels in zip(prefixes, images, strict=True)
        ]
        if "labels" in arrays:
            highest = max(int(arrays[f"{prefix}labels"].max()) for prefix in prefixes if f"{prefix}labels" in arrays)
            classes = [str(label) for label in range(highest + 1)]
    if len(parts) == 1:
        data = _split(parts[0].values, parts[0].condition, source.holdout, classes, null)
    else:
        for name in ("images",) if source.text else ("images", "labels", "features"):
            shape, test_shape = (arrays[key].shape[1:] if key in arrays else None for key in (name, f"test_{name}"))
            if shape != test_shape:
                raise DataError(f"{path}: test_{name} holds entries of shape {test_shape}, {name} of shape {shape}")
        data = _dataset(parts[0], parts[1], classes, null)
    return replace(data, text=source.text)


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise UsageError(
            f"{path}: does not exist; data.path names an .npz with `images` and what they are conditioned on"
        )
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive, or only a part of one")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from None


def _images(path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str) -> Tensor:
    """Check and take `images`, with `prefix`, from an archive: uint8 [N, C, H, W]."""
    images = arrays.get(f"{prefix}images")
    if images is None:
        raise DataError(f"{path}: found {', '.join(arrays) or 'nothing'}, expected an array named {prefix}images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{path}: {prefix}images is {images.dtype} {images.shape}, expected uint8 [N, H, W(, C)]")
    if not len(images):
        raise DataError(f"{path}: {prefix}images holds no images")
    return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)).contiguous()


def _captions(path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str, count: int) -> list[str]:
    """Check and take `captions`, with `prefix`, from an archive."""
    captions = arrays.get(f"{prefix}captions")
    if captions is None:
        raise DataError(f"{path}: data.encoder needs captions, and there is no array named {prefix}captions")
    if captions.dtype.kind != "U" or captions.shape != (count,):
        raise DataError(
            f"{path}: {prefix}captions is {captions.dtype} {captions.shape}, expected str [N] with N = {count}"
        )
    return [str(caption) for caption in captions]


def _condition(path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str, count: int) -> Tensor | None:
    """Check and take `labels` or `features`, each with `prefix`, from an archive."""
    condition: Tensor | None = None
    for name, kind, ndim in ((f"{prefix}labels", "iu", 1), (f"{prefix}features", "f", 3)):
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kind or array.ndim != ndim or len(array) != count:
            expected = "integers [N]" if ndim == 1 else "float32 [N, T, W]"
            raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, expected {expected} with N = {count}")
        if condition is not None:
            raise DataError(f"{path}: holds {prefix}labels and {prefix}features, expected one of them")
        if ndim == 1 and array.min() < 0:
            raise DataError(f"{path}: {name} holds {array.min()}, expected classes from 0")
        condition = torch.from_numpy(array.astype(np.int64 if ndim == 1 else np.float32))
    return condition


def _split(
    pixels: Tensor,
    condition: Tensor | TextFeatures | None,
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
