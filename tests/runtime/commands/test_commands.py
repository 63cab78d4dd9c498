"""`starflow sample` and `inspect` through the real command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.images import grid, to_uint8
from tests.edited_manifest import edit_manifest


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """Run a command with --json and read what it prints."""
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_sample_writes_what_the_sampler_makes(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    sheet, latents, folder = tmp_path / "sheet.png", tmp_path / "x.npy", tmp_path / "single"
    options = ["--labels", "3,0-1", "--count", "5", "--guidance", "2", "--seed", "7", "--threads", "1"]
    options += ["--temperature", "0.9"]
    told = answer(capsys, "sample", tiny_bundle, *options, "--out", sheet, "--columns", "3", "--latents", latents)
    assert told["images"] == 5 and told["files"] == [str(latents), str(sheet)] and told["variant"] == "cpu-fp32"
    answer(capsys, "sample", tiny_bundle, *options, "--out", folder)
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        x = sampler.generate(sampler.noise(5, 7, 0.9), [3, 0, 1, 3, 0], guidance=2.0)
        images = sampler.sample([3, 0, 1, 3, 0], guidance=2.0, seed=7, temperature=0.9)
    assert np.array_equal(np.load(latents), x)
    assert np.array_equal(to_uint8(x), images)
    with Image.open(sheet) as image:
        assert np.array_equal(np.asarray(image), grid(images, 3)[..., 0])
    for index, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), images[index, ..., 0])
    assert index == 4


def test_grid_places_images_row_by_row() -> None:
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    sheet = grid(images, columns=2, padding=1)[..., 0]
    assert sheet.shape == (3 * 3 - 1, 2 * 4 - 1)
    assert sheet[0, 0] == 1 and sheet[0, 4] == 2 and sheet[3, 0] == 3 and sheet[6, 0] == 5
    assert not sheet[2].any() and not sheet[:, 3].any() and not sheet[6:, 4:].any()


def test_pixels_are_rounded_and_clipped() -> None:
    x = np.array([-1.5, -1.0, -1 + 0.4 / 127.5, 0.0, 1.0, 7.0], np.float32).reshape(1, 1, 1, 6)
    assert to_uint8(x).reshape(-1).tolist() == [0, 0, 0, 128, 255, 255]


def test_inspect_tells_blocks_bytes_and_caches(tiny_bundle: Path, capsys: Any) -> None:
    told = answer(capsys, "inspect", tiny_bundle, "--hashes", "--variant", "portable-fp16")
    (variant,) = told["variants"]
    deep, shallow = variant["blocks"]
    assert (deep["block"], deep["top"], deep["layers"], deep["rows"], deep["capacity"]) == (1, True, 2, 4, 17)
    assert deep["cache_bytes"] == 2 * 2 * 4 * 17 * 32 * 2  # layers, k and v, rows, positions, head, bytes of a half
    assert (shallow["rows"], shallow["prefix"], shallow["cache_shape"]) == (2, 0, [2, 1, 16, 32])
    assert told["bytes"] == sum(file.bytes for file in Bundle.open(tiny_bundle).files())
    assert (told["family"], told["tokens"], told["data_shape"], told["guided"]) == ("starflow", 16, [1, 8, 8], True)
    assert main(["inspect", str(tiny_bundle)]) == 0
    printed = capsys.readouterr().out
    assert "portable-fp16" in printed and "`starflow calibrate --plan` makes one" in printed


def test_inspect_tells_plans_and_quantisation_with_errors_and_budgets(
    tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    figures = {"budget": 0.01, "error": 0.004, "images": 8, "guidance": 1.0}
    plan = {"backend": "onnxruntime cpu", "variant": "cpu-fp32", "passes": 19.5, "milliseconds": 3.0, **figures}
    costs = {"predicted_milliseconds": 2.9, "sequential_milliseconds": 4.0, "costs": []}
    segments = [{"kind": "chunk", "tokens": 16, "passes": 3}]

    def calibrated(manifest: dict[str, Any]) -> None:
        manifest["plans"] = [plan | costs | {"blocks": [{"block": 1, "segments": segments}]}]
        quantised = next(variant for variant in manifest["variants"] if variant["name"] == "portable-fp16")
        matrices = {"a": "int8", "b": "int8", "c": "kept"}
        quantised["quantization"] = {"source": "portable-fp32", "plain_error": 0.02, "matrices": matrices, **figures}

    edit_manifest(copy, calibrated)
    told = answer(capsys, "inspect", copy)
    assert told["plans"] == [plan | {"plan": "flow block 1", "without_plan_milliseconds": 4.0}]
    (found,) = [variant["quantization"] for variant in told["variants"] if variant["quantization"]]
    assert found["matrices"] == {"int8": 2, "kept": 1} and (found["error"], found["budget"]) == (0.004, 0.01)
    assert main(["inspect", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "quantised from portable-fp32: matrices 2 int8, 1 kept; error 4.0e-03 (budget 0.01) on 8 images" in printed
    (row,) = (line for line in printed.splitlines() if "19.5" in line)  # plan and backend wrap
    assert row.split()[-5:] == ["19.5", "3.0", "4.0", "4.0e-03", "1.0e-02"]
