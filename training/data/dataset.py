"""Training data: read from their source or left on disk, checked, and split into samples to train on and two held-out parts."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.runtime.plain.image_file import read_image
from starflow.runtime.plain.memory import check_memory
from starflow.training.config import Conditioning
from starflow.training.data.arrow_folder import open_arrow_folder
from starflow.training.data.image_folder import class_names, image_files
from starflow.training.data.npz import Archive
from starflow.training.data.pixels import pixels_of
from starflow.training.data.samples import Dataset, Samples
from starflow.training.data.source import (
    Captioned,
    DataSource,
    Digits8Source,
    FolderSource,
    HuggingFaceSource,
    NpzSource,
    PointsSource,
    WebDatasetSource,
)
from starflow.training.data.split import SPLIT_SEED, digest, split
from starflow.training.data.stored_images import ImageStore, StoredImages
from starflow.training.data.tar_shards import TarShards
from starflow.training.points import POINT_SETS
from starflow.training.text.captions import read_captions
from starflow.training.text.text_features import TextFeatures, caption_features


def load_dataset(source: DataSource, cache: Path) -> Dataset:
    """Read the source that a recipe's data section names; `cache` is a folder that keeps computed text features.

    Raises:
        UsageError: the source does not exist.
        DataError: a file is missing, unreadable, or does not fit the others.
    """
    match source:
        case FolderSource():
            return _folder(source, cache)
        case NpzSource():
            return _npz(source, cache)
        case WebDatasetSource():
            shards = TarShards(source.patterns, captioned=source.text is not None)
            return _streamed(source, {"": _Part(shards, shards.labels, shards.captions)}, None, cache)
        case HuggingFaceSource():
            return _arrow(source, cache)
        case PointsSource():
            generator = torch.Generator().manual_seed(SPLIT_SEED)
            return _split(Samples(POINT_SETS[source.shape](source.count, generator), None), source)
        case Digits8Source():
            from sklearn.datasets import load_digits

            digits = load_digits()
            pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
            labels = torch.from_numpy(digits.target.astype(np.int64))
            return _split(Samples(torch.from_numpy(pixels), labels), source, [str(digit) for digit in range(10)])


def _folder(source: FolderSource, cache: Path) -> Dataset:
    root = source.path
    if not root.is_dir():
        raise UsageError(f"{root}: does not exist; data.path names the folder that holds the images")
    if source.captions is not None:
        captions = read_captions(source.captions, root)
        features, null = _encoded(source, list(captions.values()), cache)
        data = _split(Samples(_read_all(list(captions), source), features), source, null=null)
        return replace(data, text=source.text)
    files = image_files(root)
    classes = class_names(root, files)
    if classes is None:
        return _split(Samples(_read_all(files, source), None), source)
    names = sorted(set(classes))
    labels = torch.tensor([names.index(name) for name in classes])
    return _split(Samples(_read_all(files, source), labels), source, names)


def _read_all(files: list[Path], source: FolderSource) -> Tensor:
    """The files as uint8 [N, C, H, W]."""
    images: list[NDArray[np.uint8]] = []
    if source.image_shape is not None:
        _check_memory(math.prod(source.image_shape), len(files))
    for file in files:
        try:
            image = read_image(file, source.mode)
        except UsageError as error:
            raise DataError(str(error)) from None
        images.append(pixels_of(image, source.size))
        if len(images) == 1:
            _check_memory(images[0].nbytes, len(files))
        if images[-1].shape != images[0].shape:
            (_, h, w), (_, first_h, first_w) = images[-1].shape, images[0].shape
            raise DataError(f"{file}: is {w}x{h}, {files[0]} is {first_w}x{first_h}; set data.size to resize them all")
    return torch.from_numpy(np.stack(images))


def _check_memory(image_bytes: int, count: int) -> None:
    """See that the images fit into memory: one by one, and stacked."""
    check_memory(2 * image_bytes * count, f"{count} images", "scale them down with data.size")


def _arrow(source: HuggingFaceSource, cache: Path) -> Dataset:
    parts, names = {}, None
    for name, images in open_arrow_folder(source.path, source.image).items():
        labels, captions = None, None
        if source.label is not None:
            labels, named = images.labels(source.label)
            names = names or named
        if source.caption is not None:
            captions = images.captions(source.caption)
        parts["" if name == "train" else name] = _Part(images, labels, captions)
    return _streamed(source, parts, names, cache)


class _Part(NamedTuple):
    """Images on disk, and what they are conditioned on."""

    images: ImageStore
    labels: Tensor | None  # int64 [N]
    captions: list[str] | None


def _streamed(
    source: WebDatasetSource | HuggingFaceSource, parts: dict[str, _Part], names: list[str] | None, cache: Path
) -> Dataset:
    """Parts that stay on disk: the first, and under their names those that the source holds out itself."""
    buffer = source.shuffle_buffer if isinstance(source, WebDatasetSource) else None
    conditions: dict[str, Tensor | TextFeatures | None] = {name: part.labels for name, part in parts.items()}
    null = None
    if source.text is not None:
        captions = {name: part.captions for name, part in parts.items() if part.captions is not None}
        features, null = _encoded_parts(source, captions, cache)
        conditions |= features
    samples = {
        name: Samples(
            StoredImages(part.images, torch.arange(len(part.images)), source.mode, source.size, source.readers, buffer),
            conditions[name],
        )
        for name, part in parts.items()
    }
    labels = [part.labels for part in parts.values() if part.labels is not None]
    if labels:
        highest = max(int(each.max()) for each in labels)
        names = names or [str(label) for label in range(highest + 1)]
        if highest >= len(names):
            raise DataError(f"data: found the class {highest}, but only {len(names)} classes have names")
    own = {name: part for name, part in samples.items() if name}
    return replace(_split(samples[""], source, names, null, **own), text=source.text)


def _encoded_parts(
    source: Captioned, captions: Mapping[str, list[str]], cache: Path
) -> tuple[dict[str, TextFeatures], Tensor]:
    """The features of the captions of each part, and those of the empty one, float32 [T, W]."""
    features, null = _encoded(source, [caption for part in captions.values() for caption in part], cache)
    places = torch.arange(len(features)).split([len(part) for part in captions.values()])
    return {name: features[place] for name, place in zip(captions, places, strict=True)}, null


def _encoded(source: Captioned, captions: list[str], cache: Path) -> tuple[TextFeatures, Tensor]:
    """The features of N captions, and those of the empty one, float32 [T, W]."""
    assert source.text is not None
    features = caption_features([*captions, ""], source.text, source.tokens, cache / "text_features.npz")
    every = torch.arange(len(captions))
    return features[every], features[every[-1:] + 1].padded()[0]


def _npz(source: NpzSource, cache: Path) -> Dataset:
    archive = Archive(source.path)
    if len(archive.prefixes) > 1:
        for name in ("images",) if source.text else ("images", "labels", "features"):
            archive.check_agreement(name)
    images = {prefix: archive.images(prefix) for prefix in archive.prefixes}
    classes, null = None, None
    if source.text is not None:
        captions = {prefix: archive.captions(prefix, len(pixels)) for prefix, pixels in images.items()}
        conditions, null = _encoded_parts(source, captions, cache)
        parts = {prefix: Samples(pixels, conditions[prefix]) for prefix, pixels in images.items()}
    else:
        parts = {prefix: Samples(pixels, archive.condition(prefix, len(pixels))) for prefix, pixels in images.items()}
        if "labels" in archive.arrays:
            highest = max(int(archive.arrays[f"{prefix}labels"].max()) for prefix in archive.prefixes)
            classes = [str(label) for label in range(highest + 1)]
    own = {prefix.rstrip("_"): part for prefix, part in parts.items() if prefix}
    return replace(_split(parts[""], source, classes, null, **own), text=source.text)


def _split(
    everything: Samples,
    source: DataSource,
    classes: list[str] | None = None,
    null: Tensor | None = None,
    *,
    validation: Samples | None = None,
    test: Samples | None = None,
) -> Dataset:
    """Hold out the parts that the source does not bring, the same every time."""
    indices = split(everything, validation=0 if validation else source.validation, test=0 if test else source.holdout)
    train = everything[indices.train]
    validation, test = validation or everything[indices.validation], test or everything[indices.test]
    conditioning = Conditioning()
    if train.condition is None:
        null = None
    elif classes is not None:
        conditioning = Conditioning(kind="class", num_classes=len(classes), class_names=tuple(classes))
        null = torch.tensor(len(classes))
    else:
        tokens, width = train.condition.shape[1:]
        conditioning = Conditioning(kind="features", tokens=tokens, width=width)
        null = torch.zeros(tokens, width) if null is None else null
    return Dataset(train, validation, test, conditioning, null, split=digest(indices.train))
