"""The extras `cpu` and `gpu`: one build of ONNX Runtime, the one that was asked for, whatever else is installed with it."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fake_driver import make_driver
from tests.installed_wheel import clean_environment, install, make_environment, pip

BUILDS = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}
HAS_DRIVER = os.path.exists("/dev/nvidiactl")
# From sources of NVIDIA's, or for contributors: not resolved here.
NOT_RESOLVED = {"tensorrt", "lint-cpp", "docs", "dev"}


def extras(repository: Path) -> dict[str, list[str]]:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def brought(all_extras: Mapping[str, list[str]], extra: str) -> Iterator[str]:
    """Names of the packages that an extra requires, with those of the extras it includes."""
    for requirement in all_extras[extra]:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match
        if match[1] == "starflow-compiler":
            for included in match[2].split(","):
                yield from brought(all_extras, included)
        else:
            yield match[1]


def test_only_the_two_extras_bring_onnx_runtime(repository: Path) -> None:
    found = extras(repository)
    bringing = {extra: {name for name in brought(found, extra) if name.startswith("onnxruntime")} for extra in found}
    assert {extra: names for extra, names in bringing.items() if names} == {
        extra: {build} for extra, build in BUILDS.items()
    }


def resolved(repository: Path, wheel: Path, chosen: str, folder: Path) -> set[str]:
    """Names of what pip would install into an empty environment."""
    command = pip(
        make_environment(folder / "environment"), "install", "--quiet", "--dry-run", "--report", folder / "report"
    )
    command += ["--constraint", repository / "constraints-cpu.txt", f"{wheel}[{chosen}]"]
    subprocess.run(command, check=True, env=clean_environment())
    return {each["metadata"]["name"].lower() for each in json.loads((folder / "report").read_text())["install"]}


@pytest.mark.parametrize("extra", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_an_extra_resolves_to_its_build_alone(repository: Path, wheel: Path, tmp_path: Path, extra: str) -> None:
    names = resolved(repository, wheel, extra, tmp_path)
    assert {name for name in names if name.startswith("onnxruntime")} == {BUILDS[extra]}
    assert any(name.startswith("nvidia-cudnn") for name in names) is (extra == "gpu")


@pytest.mark.slow
@pytest.mark.parametrize("extra", BUILDS)
def test_no_other_extra_brings_the_other_build(repository: Path, wheel: Path, tmp_path: Path, extra: str) -> None:
    """Not by what its packages require either."""
    others = set(extras(repository)) - {"", *BUILDS} - NOT_RESOLVED
    names = resolved(repository, wheel, ",".join([extra, *sorted(others)]), tmp_path)
    assert {name for name in names if name.startswith("onnxruntime")} == {BUILDS[extra]}
    assert names >= {"torch", "transformers", "fastapi", "ray"}


@pytest.mark.slow
@pytest.mark.skipif(HAS_DRIVER, reason="there is a driver: see the tests marked gpu")
def test_the_gpu_build_installed_for_real(repository: Path, wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """2.5 GB: the build, CUDA's libraries, and what is said as one thing after the other is missing or too much."""
    scripts = make_environment(tmp_path / "environment")
    install(scripts, repository, f"{wheel}[gpu]")

    def starflow(*arguments: str | Path, status: int, **variables: str) -> str:
        done = subprocess.run(
            [scripts / "starflow", *arguments],
            cwd=tmp_path,
            env=clean_environment() | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        if status:
            assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        return done.stderr if status else done.stdout

    def sample(provider: str, **variables: str) -> str:
        return starflow("sample", tiny_bundle, "--provider", provider, status=1, **variables)

    def change(*arguments: str) -> None:
        subprocess.run(pip(scripts, *arguments), check=True, env=clean_environment())

    def doctor(**variables: str) -> Mapping:
        said: Mapping = json.loads(starflow("doctor", "--json", status=0, **variables))
        return said

    # It runs on the processor as the CPU build does.
    starflow("sample", "digits", "--labels", "0-9", "--threads", "1", "--out", "digits.png", status=0)
    packages = {package["name"]: package for package in doctor()["packages"]}
    assert packages["onnxruntime"]["note"].startswith("GPU build for CUDA 13")
    assert doctor()["onnxruntime"]["tensorrt"] == 10 and not doctor()["onnxruntime"]["lacks_cudnn"]

    # All that is missing is the driver, or one that is new enough.
    assert sample("cuda").endswith("here: libcuda.so.1 is missing: install the NVIDIA driver\n")
    make_driver(tmp_path / "old", (12, 4))
    old = sample("cuda", LD_LIBRARY_PATH=str(tmp_path / "old"))
    assert "is for CUDA 12.4, which is too old for CUDA 13: update it to 580 or newer, or pip install" in old
    conflict, cuda_python = doctor(LD_LIBRARY_PATH=str(tmp_path / "old"))["conflicts"]
    assert conflict.startswith("onnxruntime 1.") and conflict.endswith("'onnxruntime-gpu[cuda,cudnn]<1.27'")
    assert cuda_python.startswith("cuda-python 13.") and cuda_python.endswith("'cuda-python<13'")
    assert "libnvinfer.so.10 and libnvonnxparser.so.10 are missing: pip install 'tensorrt-cu13<11'" in sample(
        "tensorrt"
    )

    # A library is missing.
    change("uninstall", "--quiet", "--yes", "nvidia-cublas")
    missing = sample("cuda")
    assert "libcublasLt.so.13 and libcublas.so.13 are missing: pip install 'onnxruntime-gpu[cuda,cudnn]'" in missing

    # Both builds, and then half of one.
    change("install", "--quiet", "onnxruntime")
    (conflict,) = doctor()["conflicts"]
    assert re.match(r"onnxruntime \S+ and onnxruntime-gpu \S+ are both installed", conflict)
    change("uninstall", "--quiet", "--yes", "onnxruntime")
    assert "ONNX Runtime's files are incomplete" in starflow("sample", "digits", status=1)
    assert "incomplete" in "".join(ability["how"] for ability in doctor()["abilities"])
    mend = conflict.partition(": ")[2]
    assert mend == "pip uninstall --yes onnxruntime onnxruntime-gpu; pip install onnxruntime"
    for command in mend.split("; "):
        change(*command.split()[1:], "--quiet")
    starflow("sample", "digits", "--labels", "0-9", "--threads", "1", "--out", "again.png", status=0)
    assert doctor()["conflicts"] == []
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "digits.png").read_bytes()
