"""Captions of images, and the words that the published code writes around them."""

import csv
from pathlib import Path
from typing import Any

from starflow.runtime.plain.caption_template import CAPTION
from starflow.runtime.plain.errors import DataError, UsageError
from starflow.runtime.plain.json_text import parse_json
from starflow.runtime.plain.limits import MOST_CAPTION
from starflow.runtime.plain.text_lines import text_lines

MOST_LINE = (
    8 * MOST_CAPTION
)  # characters: JSON may write six for one, and the name of the file stands beside the caption


def read_captions(path: Path, root: Path) -> dict[Path, str]:
    """Read captions as {image file: caption}, in the file's order.

    Args:
        path: `.jsonl` with {"file": ..., "caption": ...} on every line, or `.csv` with the columns file and caption. Hugging
            Face's names for them, file_name and text, do as well.
        root: Folder that image names are relative to.

    Raises:
        UsageError: the file cannot be read.
        DataError: an entry lacks a field, or a named image is missing.
    """
    try:
        lines = text_lines(path, MOST_LINE)
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(lines))
        else:
            rows = [parse_json(line) for line in lines if line.strip()]
    except OSError as error:
        raise UsageError(f"{path}: cannot read the captions: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: found neither JSON lines nor CSV: {error}") from None
    captions: dict[Path, str] = {}
    for number, row in enumerate(rows, 1):
        of_file, of_caption = _names(row, path)
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in (of_file, of_caption)):
            raise DataError(f"{path}: entry {number} lacks `{of_file}` or `{of_caption}`; both are texts")
        file, caption = root / row[of_file], row[of_caption]
        if not file.is_file():
            raise DataError(f"{path}: entry {number} names {row[of_file]}, which is not in {root}")
        if len(caption) > MOST_CAPTION:
            raise DataError(
                f"{path}: entry {number} has {len(caption):,} characters, expected at most {MOST_CAPTION:,}"
            )
        captions[file] = caption
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return captions


def _names(row: Any, path: Path) -> tuple[str, str]:
    """What an entry calls its image file and its caption."""
    if isinstance(row, dict) and "file" in row:
        return "file", "caption"
    foreign = path.stem == "metadata" or (isinstance(row, dict) and "file_name" in row)
    return ("file_name", "text") if foreign else ("file", "caption")


def caption_template(aspect_ratio: str | None = None, fps: int | None = None, noise_level: int | None = None) -> str:
    """The text around a caption, as the published code writes it (its `preprocess_text`), around the empty one as well.

    Args:
        aspect_ratio: Width to height, such as "3:2", or the place where the export writes it (option `mix_aspect`).
        fps: Frames per second of a video; 0 is an image (option `fps_cond`).
        noise_level: Thousandths of the noise's standard deviation (option `cond_noise_level`).
    """
    text = CAPTION
    if fps is not None:
        text = f"A video with {fps} fps:\n{text}\n" if fps else f"An image:\n{text}\n"
    if noise_level is not None:
        text = f"Noise Level {noise_level}:\n{text}"
    if aspect_ratio is not None:
        text = f"{text}\n in a {aspect_ratio} aspect ratio.\n"
    return text
