"""What a user gets from `pip install 'starflow-compiler[cpu]'`: everything that runs a bundle, and no torch."""

import json
import subprocess
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.installed_wheel import FOLDERS, clean_environment, install, make_environment, pip


def modules_of(repository: Path) -> set[str]:
    """Every Python file of the four folders, named as a wheel names it."""
    return {
        f"starflow/{file.relative_to(repository).as_posix()}"
        for folder in FOLDERS
        for file in (repository / folder).rglob("*.py")
    }


def test_every_folder_with_python_is_a_listed_package(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {str(Path(module).parent).replace("/", ".") for module in modules_of(repository)}
    assert set(settings["packages"]) == found, "list the new sub-package in pyproject.toml, [tool.setuptools]"
    for package in found:
        folder = repository / package.removeprefix("starflow.").replace(".", "/")
        assert (folder / "__init__.py").is_file(), f"{package} has no __init__.py"


def test_what_the_constraints_pin_is_what_the_tests_run_with(repository: Path) -> None:
    """Pins that drifted from the environment would make a green run here say nothing about CI."""
    pins = [line for line in (repository / "constraints-cpu.txt").read_text().splitlines() if line[:1].isalnum()]
    (build,) = set(packages_distributions()["onnxruntime"])
    for name, pinned in (pin.split("==") for pin in pins):
        if name in ("numpy", "onnx", build, "torch"):
            assert version(name).partition("+")[0] == pinned, f"run `make install`: {name}"


@pytest.fixture(scope="module")
def fresh(wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script folder of a new environment with nothing in it but the wheel, what it requires, and ONNX Runtime."""
    scripts = make_environment(tmp_path_factory.mktemp("fresh"))
    install(scripts, repository, f"{wheel}[cpu]")
    return scripts


@pytest.fixture(scope="module")
def bare(wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without ONNX Runtime."""
    scripts = make_environment(tmp_path_factory.mktemp("bare"))
    install(scripts, repository, wheel)
    return scripts


def installed(scripts: Path) -> set[str]:
    listed = subprocess.run(pip(scripts, "list", "--format", "json"), check=True, capture_output=True, text=True)
    return {package["name"].lower() for package in json.loads(listed.stdout)}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True)


def test_wheel_holds_every_module_the_types_and_the_schemas(wheel: Path, repository: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("starflow/")}
    schemas = {f"starflow/runtime/schema/{file.name}" for file in (repository / "runtime/schema").glob("*.json")}
    typed = {f"starflow/{folder}/py.typed" for folder in FOLDERS}
    assert schemas, "the manifest's JSON Schema is published with the package"
    shipped = {
        f"starflow/{file.relative_to(repository).as_posix()}"
        for file in (repository / "runtime/shipped").rglob("*")
        if file.is_file()
    }
    page = "starflow/runtime/serve/http/page.html"
    assert names == modules_of(repository) | typed | schemas | shipped | {page}


def test_base_install_brings_no_training_or_export_packages(fresh: Path, bare: Path) -> None:
    names = installed(fresh)
    assert names - installed(bare) >= {"onnxruntime"}
    assert "starflow-compiler" in installed(bare) and "onnxruntime-gpu" not in names
    assert not names & {"torch", "onnx", "onnxscript", "scikit-learn", "pyyaml", "tensorboard", "transformers"}


def test_base_install_samples_a_bundle(fresh: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    sampled = run(fresh / "starflow", "sample", tiny_bundle, "--threads", "1", "--out", "samples.png", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "samples.png") as image:
        assert image.getextrema() != ((0, 0),) * len(image.getbands()), "the picture is black"


def test_base_install_samples_the_bundle_it_brings(fresh: Path, tmp_path: Path) -> None:
    sampled = run(fresh / "starflow", "sample", "digits", "--labels", "0-9", "--threads", "1", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "samples.png") as image:
        assert image.getextrema() == (0, 255)


def test_base_install_lists_every_command(bare: Path, tmp_path: Path) -> None:
    listed = run(bare / "starflow", "--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "(unavailable" not in listed.stdout


def test_without_onnx_runtime_it_reads_bundles_and_says_what_runs_them(bare: Path, tmp_path: Path) -> None:
    for command in (["inspect", "digits"], ["doctor"]):
        done = run(bare / "starflow", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    refused = run(bare / "starflow", "sample", "digits", "--labels", "0-9", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "choose the extra cpu, or gpu for NVIDIA GPUs: pip install '.[cpu]' in a clone of starflow" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "recipe.yaml"], "train"),
        (["export", "checkpoint", "--out", "bundle"], "export"),
        (["serve", "bundle"], "serve"),
        (["generate", "bundle", "--shards", "2", "--out", "out", "--ray"], "ray"),
    ],
)
def test_base_install_names_the_extra_it_lacks(bare: Path, tmp_path: Path, arguments: list[str], extra: str) -> None:
    refused = run(bare / "starflow", *arguments, cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert f"pip install '.[{extra}]' in a clone of starflow" in refused.stderr


def test_captions_become_pictures_without_torch(
    fresh: Path, wheel: Path, repository: Path, emoji_bundle: Path, tmp_path: Path
) -> None:
    """The text-to-image model that ships, with the extra `text` added to the base install."""
    install(fresh, repository, f"{wheel}[text]")
    names = installed(fresh)
    assert "tokenizers" in names and not names & {"torch", "transformers", "diffusers"}
    caption = ("--captions", "red heart, noto style", "--guidance", "1", "--threads", "1", "--out", "heart.png")
    sampled = run(fresh / "starflow", "sample", emoji_bundle, *caption, cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "heart.png") as image:
        assert image.size == (64, 64)
        red, green, blue = np.asarray(image)[24:40, 24:40].mean(axis=(0, 1))
    assert red > 150 > 100 > max(green, blue)
