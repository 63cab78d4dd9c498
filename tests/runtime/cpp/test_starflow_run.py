"""`starflow-run` as its user sees it."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.plain.images import grid
from tests.cpp_library import REPOSITORY

SHIPPED = REPOSITORY / "runtime/shipped/digits"


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / "starflow-run", *arguments], capture_output=True, text=True)


def test_a_sheet_of_digits_is_that_of_python(cpp_folder: Path, tmp_path: Path) -> None:
    out, latents = tmp_path / "grid.png", tmp_path / "data.npy"
    options = (
        "--labels",
        "0-9",
        "--guidance",
        "2",
        "--seed",
        "7",
        "--threads",
        "1",
        "--out",
        out,
        "--latents",
        latents,
    )
    sampled = run(cpp_folder, SHIPPED, *options, "--bench", "1", "--json")
    assert sampled.returncode == 0, sampled.stderr
    summary = json.loads(sampled.stdout)
    assert summary["images"] == 10 and summary["variant"] == "cpu-int8" and summary["microseconds_per_token"] > 0
    with Sampler.open("digits", threads=1) as sampler:
        data = sampler.generate(sampler.noise(10, 7), list(range(10)), guidance=2.0)
        expected = grid(sampler.to_images(data))[:, :, 0]
    np.testing.assert_allclose(np.load(latents), data, rtol=0, atol=1e-6)
    with Image.open(out) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_seed_and_a_guidance_for_each_image_and_given_noise(cpp_folder: Path, tmp_path: Path) -> None:
    common = ("--labels", "3,1", "--guidance", "0,2", "--threads", "1", "--out", tmp_path / "x.png", "--latents")
    with Sampler.open("digits", threads=1) as sampler:
        noise = sampler.noise(2, [5, 9])
        expected = sampler.generate(noise, [3, 1], guidance=[0.0, 2.0])
    np.save(tmp_path / "noise.npy", noise)
    for source in (("--seeds", "5,9"), ("--noise", tmp_path / "noise.npy")):
        assert run(cpp_folder, SHIPPED, *common, tmp_path / "x.npy", *source).returncode == 0
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "name a bundle"),
        (["/nowhere"], 2, "does not exist"),
        ([str(SHIPPED), "--labels", "11"], 2, "label 11"),
        ([str(SHIPPED), "--labels", "x"], 2, "whole number"),
        ([str(SHIPPED), "--count"], 2, "needs a value"),
        ([str(SHIPPED), "--colour", "red"], 2, "unknown argument --colour"),
        ([str(SHIPPED), "--guidance", "-1"], 2, "guidance"),
        ([str(SHIPPED), "--variant", "gpu"], 1, "it has cpu-int8"),
        ([str(SHIPPED), "--onnxruntime", "/nowhere.so"], 1, "cannot be loaded"),
        ([str(SHIPPED), "--noise", "/nowhere.npy"], 1, "/nowhere.npy"),
        ([str(SHIPPED), "--out", "/nowhere/x.png", "--count", "1"], 1, "cannot be written"),
    ],
)
def test_errors_are_one_line(cpp_folder: Path, arguments: list[str], status: int, says: str) -> None:
    refused = run(cpp_folder, *arguments)
    assert refused.returncode == status and refused.stderr.count("\n") == 1, refused.stderr
    assert says in refused.stderr and refused.stdout == ""


def test_help_names_every_option(cpp_folder: Path) -> None:
    shown = run(cpp_folder, "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("Sample images from a bundle.")
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
