"""The fastest variant by recorded times: where they count, and where the exact one stays."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest_file import manifest_content, read_manifest
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.processor import processor
from starflow.runtime.sampler import Sampler
from tests.edited_manifest import edit_manifest

Times = tuple[float, float]


def with_times(bundle: Path, root: Path, times: dict[str, Times], where: str | None = None, **changes: Any) -> Path:
    """A copy with variants that were timed: the exact graphs under other names."""
    shutil.copytree(bundle, root)

    def change(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 3 if times else 1
        exact = next(variant for variant in manifest["variants"] if variant["name"] == "cpu-fp32")
        batch = manifest["batch"]
        for name, (step, chunk) in times.items():
            timed = {"processor": where or processor(), "batches": [{"batch": batch, "step": step, "chunk": chunk}]}
            record = {"source": "cpu-fp32", "budget": 0.01, "error": 0.004, "plain_error": None, "images": 8}
            record |= {"guidance": 1.0, "matrices": {}, "timing": timed} | changes
            manifest["variants"].append(exact | {"name": name, "precision": name[4:], "quantization": record})

    edit_manifest(root, change)
    return root


def opened(root: Path, **options: Any) -> str:
    with Sampler.open(root, backend="onnxruntime", threads=1, **options) as sampler:
        return sampler.variant.name


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"cpu-int8": (0.6, 0.8)}, "cpu-int8"),
        ({"cpu-int8": (0.6, 0.8), "cpu-int4": (0.5, 0.7)}, "cpu-int4"),
        ({"cpu-int8": (0.6, 0.6), "cpu-int4": (0.3, 0.9)}, "cpu-int8"),
        ({"cpu-int8": (1.2, 0.8)}, "cpu-fp32"),
        ({"cpu-int8": (0.6, 1.01)}, "cpu-fp32"),
        ({"cpu-int8": (0.99, 0.99)}, "cpu-fp32"),
        ({}, "cpu-fp32"),
    ],
)
def test_the_fastest_in_steps_and_in_chunks(
    tiny_bundle: Path, tmp_path: Path, times: dict[str, Times], expected: str
) -> None:
    root = with_times(tiny_bundle, tmp_path / "bundle", times)
    assert opened(root, variant="auto") == expected
    assert opened(root) == "cpu-fp32", "the exact one stays the default"


def test_times_of_another_processor_do_not_count_and_it_says_so(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    root = with_times(tiny_bundle, tmp_path / "bundle", {"cpu-int8": (0.5, 0.5)}, "Z80, family 1")
    with caplog.at_level(logging.WARNING):
        assert opened(root, variant="auto") == "cpu-fp32"
    (record,) = caplog.records
    assert "cpu-int8 was timed on another processor" in record.getMessage() and processor() in record.getMessage()
    assert main(["inspect", str(root)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.50 and 0.50 at batch" in printed
    assert f"on Z80, family 1; this is {processor()}, so --variant auto does not go by them" in printed


def test_times_against_another_variant_or_at_other_sizes_do_not_count(tiny_bundle: Path, tmp_path: Path) -> None:
    other = with_times(tiny_bundle, tmp_path / "source", {"cpu-int8": (0.5, 0.5)}, source="portable-fp32")
    assert opened(other, variant="auto") == "cpu-fp32"
    timed = {"processor": processor(), "batches": [{"batch": 99, "step": 0.5, "chunk": 0.5}]}
    sizes = with_times(tiny_bundle, tmp_path / "sizes", {"cpu-int8": (0.5, 0.5)}, timing=timed)
    assert opened(sizes, variant="auto") == "cpu-fp32"


def test_a_manifest_with_times_has_schema_3(tiny_bundle: Path, tmp_path: Path) -> None:
    root = with_times(tiny_bundle, tmp_path / "bundle", {"cpu-int8": (0.5, 0.5)})
    manifest = Bundle.open(root).manifest
    assert read_manifest(json.loads(manifest_content(manifest))) == manifest
    edit_manifest(root, lambda content: content.update(schema_version=1))
    with pytest.raises(BundleError, match="with times or products by row"):
        Bundle.open(root)


def test_a_copy_without_the_timed_variant_has_the_schema_of_before(tiny_bundle: Path, tmp_path: Path) -> None:
    root = with_times(tiny_bundle, tmp_path / "bundle", {"cpu-int8": (0.5, 0.5)})
    assert main(["copy", str(root), "-o", str(tmp_path / "copy"), "--variant", "cpu-fp32"]) == 0
    content = json.loads((tmp_path / "copy/manifest.json").read_text())
    assert content["schema_version"] == 1
    assert main(["copy", str(root), "-o", str(tmp_path / "whole")]) == 0
    assert json.loads((tmp_path / "whole/manifest.json").read_text())["schema_version"] == 3


def test_older_schemas_do_not_have_the_field(tiny_bundle: Path, tmp_path: Path) -> None:
    """A quantised variant that was not timed is as older releases wrote it."""
    root = with_times(tiny_bundle, tmp_path / "bundle", {"cpu-int8": (0.5, 0.5)}, timing=None)
    edit_manifest(root, lambda content: content.update(schema_version=1))
    manifest = Bundle.open(root).manifest
    written = json.loads(manifest_content(manifest))["variants"][-1]["quantization"]
    assert written["source"] == "cpu-fp32" and "timing" not in written
