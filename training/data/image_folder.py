"""A folder of images: which files count, and which class each belongs to."""

from collections.abc import Sequence
from pathlib import Path

from starflow.runtime.plain.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def image_files(root: Path) -> list[Path]:
    """The image files anywhere below a folder, sorted; DataError if there are none."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def class_names(root: Path, files: Sequence[Path]) -> list[str] | None:
    """The class of each file, which is the first sub-folder it lies in; None if there are no sub-folders.

    Raises:
        DataError: some files lie in sub-folders, others beside them.
    """
    loose = [file for file in files if file.parent == root]
    if len(loose) == len(files):
        return None
    if loose:
        raise DataError(f"{loose[0]}: lies next to class folders; move it into one of them")
    return [file.relative_to(root).parts[0] for file in files]
