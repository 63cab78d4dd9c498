"""What a folder of images holds, as far as a recipe depends on it."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.runtime.plain.image_file import read_image
from starflow.training.data.image_folder import class_names, image_files
from starflow.training.text.captions import read_captions

CAPTION_FILES = ("captions.jsonl", "captions.csv")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's `imagefolder`; not all of them hold captions
MOST_HEADER = 1 << 16  # characters of a file's first line that are read
LOOKED_AT = 64  # images that are decoded to see whether all of them are grey


@dataclass(frozen=True)
class ImageSurvey:
    """A folder's images.

    Attributes:
        sides: The shorter side of every image, in pixels.
        square: Share of the images that are square.
        grey: Whether the images that were looked at have no colour.
        classes: Number of images of each class, in the order of their names; empty without classes.
        captions: The file of captions, or None.
        longest_caption: Words of the longest caption; 0 without captions.
    """

    folder: Path
    sides: tuple[int, ...]
    square: float
    grey: bool
    classes: dict[str, int]
    captions: Path | None
    longest_caption: int

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.sides)

    @property
    def side(self) -> int:
        """The median of the shorter sides, in pixels."""
        return int(median(self.sides))

    def described(self) -> str:
        """One line for people."""
        low, high = min(self.sides), max(self.sides)
        sides = f"{low}" if low == high else f"{low} to {high}, median {self.side}"
        parts = [f"{self.count:,} {'grey' if self.grey else 'colour'} images", f"shorter side {sides} pixels"]
        if self.classes:
            few, many = min(self.classes.values()), max(self.classes.values())
            parts.append(f"{len(self.classes)} classes of {few}" + (f" to {many}" if many > few else ""))
        if self.captions:
            parts.append(f"captions in {self.captions.name}")
        return ", ".join(parts)


def survey_images(folder: Path) -> ImageSurvey:
    """Look at a folder: headers of all images, and the pixels of some.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no images, or one that cannot be read, or more than one file of captions.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: does not exist; name the folder that holds the images")
    files = image_files(folder)
    captions = _captions(folder)
    classes: list[str] = []
    longest = 0
    if captions is not None:
        texts = read_captions(captions, folder)
        files, longest = list(texts), max(len(text.split()) for text in texts.values())
    else:
        classes = class_names(folder, files) or []
    sizes = [_size(file) for file in files]
    chosen = files[:: max(1, len(files) // LOOKED_AT)]
    return ImageSurvey(
        folder=folder,
        sides=tuple(min(size) for size in sizes),
        square=sum(width == height for width, height in sizes) / len(sizes),
        grey=all(_is_grey(file) for file in chosen),
        classes=dict(sorted(Counter(classes).items())),
        captions=captions,
        longest_caption=longest,
    )


def _captions(folder: Path) -> Path | None:
    """The file of captions, if there is one."""
    found = [name for name in CAPTION_FILES if (folder / name).is_file()]
    found += [name for name in METADATA_FILES if (folder / name).is_file() and _has_texts(folder / name)]
    if len(found) > 1:
        raise DataError(f"{folder}: found {' and '.join(found)}, expected one file of captions; move the others away")
    return folder / found[0] if found else None


def _has_texts(file: Path) -> bool:
    """Whether the first line, a header or an entry, names the field `text`."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "text" in re.findall(r"\w+", lines.readline(MOST_HEADER))


def _size(file: Path) -> tuple[int, int]:
    """Width and height by the header alone."""
    try:
        with Image.open(file) as image:
            return image.size
    except Exception as error:  # Pillow reports damage by a dozen types
        raise DataError(f"{file}: is not an image, or damaged; remove it or replace it") from error


def _is_grey(file: Path) -> bool:
    try:
        pixels = np.asarray(read_image(file, "RGB"))
    except UsageError as error:
        raise DataError(str(error)) from None
    return bool((pixels == pixels[..., :1]).all())
