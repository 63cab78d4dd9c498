"""The header of a weight file is read when a bundle is opened, although no graph needs it."""

import shutil
from pathlib import Path

import pytest

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BundleError


def test_damage_that_reaches_into_a_header_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    weights = root / "graphs" / "weights" / "fp32.safetensors"
    content = weights.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    Bundle.open(root)
    for start in (0, 8, end // 2, end - 1):
        weights.write_bytes(content[:start] + bytes(len(content) - start))
        with pytest.raises(
            BundleError, match=r"fp32.safetensors: its header is damaged \(.+\); copy or export it again"
        ):
            Bundle.open(root)
    weights.write_bytes(content[:end] + bytes(len(content) - end))  # of the weights themselves only digests tell
    with pytest.raises(BundleError, match="not what was exported"):
        Bundle.open(root).verify_hashes()
