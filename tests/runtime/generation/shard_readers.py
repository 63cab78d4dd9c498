"""Readers of shards that know nothing of ours, and the set that tests make."""

import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

# 11 images in batches of 2 make six batches, the last one half full.
SET = ("--labels", "0-3", "--count", "11", "--guidance", "2", "--seed", "7", "--threads", "1")


def read_tar(folder: Path) -> dict[str, bytes]:
    """The members of all shards by name, as GNU tar unpacks them."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        names = subprocess.run(["tar", "tf", shard], check=True, capture_output=True, text=True).stdout.split()
        for name in names:
            assert name not in found
            found[name] = subprocess.run(["tar", "xOf", shard, name], check=True, capture_output=True).stdout
    return found


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
