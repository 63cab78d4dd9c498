"""`starflow doctor`, in processes of its own: what is blocked there is blocked from the first import on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from starflow.runtime.backends.cuda import driver
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.command_line import main
from starflow.runtime.diagnostics.doctor import PROBES, examine
from starflow.runtime.diagnostics.machine import (
    IDENTITY_MODEL,
    Gpu,
    Gpus,
    Machine,
    OnnxRuntime,
    Package,
    Provider,
    TensorRT,
    this_computer,
    this_machine,
)
from starflow.runtime.diagnostics.version_conflicts import version_conflicts
from starflow.runtime.plain.install_hint import install_hint, onnxruntime_hint
from tests.fake_driver import make_driver
from tests.simulated_device.fixtures import Simulate

RUN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from starflow.runtime.command_line import main
status = main(["doctor", "--json"])
assert not {{"torch", "onnx", "polygraphy"}} & set(sys.modules), "doctor imported what it should only look at"
raise SystemExit(status)
"""


def doctor(*blocked: str, **first: Path) -> dict[str, Any]:
    """What it says where some packages cannot be imported; `first` names folders to search first, by environment variable."""
    paths = {name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in first.items()}
    environment = os.environ | paths
    code = RUN.format(blocked=blocked)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    said: dict[str, Any] = json.loads(answer.stdout)
    return said


def ability(said: dict[str, Any], start: str) -> tuple[bool, str]:
    (found,) = [entry for entry in said["abilities"] if entry["what"].startswith(start)]
    return found["possible"], found["how"]


def test_it_says_what_is_here() -> None:
    said = doctor()
    packages = {package["name"]: package for package in said["packages"]}
    assert packages["torch"]["version"] == torch.__version__
    assert packages["torch"]["note"] == (f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build")
    assert packages["onnxruntime"]["note"] == "CPU build"
    assert {"name": "CPUExecutionProvider", "loads": True, "problem": None} in said["providers"]
    assert said["conflicts"] == []
    assert said["machine"]["cores"] >= 1 and said["machine"]["memory_bytes"] > 2**28
    assert (
        ability(said, "train")[0]
        and ability(said, "export")[0]
        and ability(said, "run bundles on ONNX Runtime, CPU")[0]
    )
    possible, how = ability(said, "build engines ahead")
    flavour = load_flavour("tensorrt-rtx")
    assert possible and flavour.version in how and "8.9" in how


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_said_to_run_on_one() -> None:
    said = doctor()
    assert said["gpus"]["found"] == [] and said["gpus"]["problem"]
    for start in ("run TensorRT engines", "run bundles on ONNX Runtime, GPU", "build engines for this"):
        assert ability(said, start) == (False, "needs an NVIDIA GPU")


def test_a_missing_package_is_an_answer_with_its_mend() -> None:
    said = doctor("tensorrt_rtx", "tensorrt")
    assert ability(said, "build engines ahead") == (
        False,
        f"tensorrt_rtx is not installed: {install_hint('tensorrt-rtx')}",
    )
    said = doctor("onnxruntime")
    assert said["providers"] == []
    hint = f"ONNX Runtime is not installed: {onnxruntime_hint()}"
    assert ability(said, "run bundles on ONNX Runtime, CPU") == (False, hint)


@pytest.mark.parametrize(("capability", "rtx"), [("8.9", True), ("9.0", False)])
def test_nvidia_smi_is_asked_where_cuda_python_is_missing(tmp_path: Path, capability: str, rtx: bool) -> None:
    """A program of that name stands for the driver's; the flavours are the real ones."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'NVIDIA Something, {capability}, 24564, 580.65.06'\n")
    tool.chmod(0o755)
    said = doctor("cuda", "tensorrt", PATH=tmp_path)
    (gpu,) = said["gpus"]["found"]
    assert gpu == {"name": "NVIDIA Something", "compute_capability": capability, "memory_bytes": 24564 << 20}
    assert said["gpus"]["driver"] == "580.65.06"
    possible, how = ability(said, "build engines for this")
    assert possible is rtx
    assert how.startswith("tensorrt-rtx") if rtx else how.endswith(install_hint("tensorrt"))
    possible, how = ability(said, "run TensorRT engines")
    assert not possible and how.startswith("cuda-python not installed")
    possible, how = ability(said, "run bundles on ONNX Runtime, GPU")
    assert not possible and "onnxruntime-gpu" in how


def test_gpus_are_those_the_tensorrt_backend_sees(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(capability="12.0", gpus=2, memory=3 << 30)
    monkeypatch.setattr(driver, "DRIVER_LIBRARY", str(make_driver(tmp_path, (13, 4), "libfake.so.1")))
    diagnosis = examine()
    assert [(gpu.compute_capability, gpu.memory_bytes) for gpu in diagnosis.gpus.found] == [("12.0", 3 << 30)] * 2
    assert diagnosis.gpus.driver == "for CUDA 13.4"
    (running,) = [ability for ability in diagnosis.abilities if ability.what == "run TensorRT engines"]
    assert running.possible


# Versions that do not fit


def test_both_builds_of_onnx_runtime_are_one_too_many(tmp_path: Path) -> None:
    """The other build by its metadata alone; tests/test_onnxruntime_builds.py installs both."""
    other = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    (other / "top_level.txt").write_text("onnxruntime\n")
    said = doctor(PYTHONPATH=tmp_path)
    assert said["conflicts"] == [
        f"onnxruntime {version('onnxruntime')} and onnxruntime-gpu 1.31.1 are both installed and overwrite each other's files: "
        "pip uninstall --yes onnxruntime onnxruntime-gpu; pip install onnxruntime"
    ]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_what_a_driver_is_too_old_for_is_named(tmp_path: Path) -> None:
    make_driver(tmp_path, (12, 4))
    said = doctor(LD_LIBRARY_PATH=tmp_path)
    assert said["gpus"]["found"] == [] and said["gpus"]["driver"] == "for CUDA 12.4"
    cuda, rtx = said["conflicts"]
    old = "the NVIDIA driver is for CUDA 12.4, which is too old for CUDA 13: update it to 580 or newer, or pip install"
    assert cuda == f"cuda-python {version('cuda-bindings')}: {old} 'cuda-python<13'"
    assert rtx.startswith(f"tensorrt-rtx {version('tensorrt-rtx-cu13')[:5]}")
    assert rtx.endswith(f"{old} tensorrt-rtx-cu12 in place of tensorrt-rtx-cu13")
    assert "too old for CUDA 13" in ability(said, "run TensorRT engines")[1]


def test_releases_that_do_not_fit_each_other_are_named() -> None:
    facts = Machine(
        machine=this_computer(),
        packages=(
            Package("onnxruntime", "1.31.1", "", "13.0"),
            Package("torch", "2.9.0", "", "12.8"),
            Package("cuda-python", "13.4.4", "", "13.4"),
        ),
        onnxruntime=OnnxRuntime(("onnxruntime-gpu 1.31.1",), tensorrt=10, lacks_cudnn=True),
        providers=(Provider("CUDAExecutionProvider", True),),
        tensorrt=(TensorRT("tensorrt", "11.4.0.106", (), None, "13"),),
        gpus=Gpus((), None, None),
        extras=(),
    )
    tensorrt, torch_build, cudnn = version_conflicts(facts)
    assert tensorrt.startswith("--provider tensorrt needs TensorRT 10, and tensorrt 11.4.0.106 is installed: ")
    assert "pip install 'tensorrt<11'" in tensorrt
    assert torch_build.startswith("torch 2.9.0 is for CUDA 12.8 and onnxruntime-gpu 1.31.1 for CUDA 13.0")
    assert cudnn.startswith("libcudnn.so.9 is missing") and "onnxruntime-gpu[cuda,cudnn]" in cudnn
    fitting = replace(facts, onnxruntime=OnnxRuntime(("onnxruntime-gpu 1.31.1",), tensorrt=11))
    assert (
        list(version_conflicts(replace(fitting, packages=(facts.packages[0], Package("torch", "2.11.0", "", "13.0")))))
        == []
    )


def test_the_cuda_provider_needs_cuda_python() -> None:
    facts = this_machine()
    gpus = Gpus((Gpu("NVIDIA Something", "9.0", 80 << 30),), "for CUDA 13.0", None)
    (probe,) = [probe for probe in PROBES if probe.what == "run bundles on ONNX Runtime, GPU"]
    facts = replace(facts, gpus=gpus, providers=(Provider("CUDAExecutionProvider", True),))
    assert probe.try_on(facts).possible
    without = replace(facts, packages=(*facts.packages[:-1], Package("cuda-python", None, "not installed")))
    assert probe.try_on(without).how == "cuda-python not installed: pip install 'cuda-python<14'"
    problem = "libcublas.so.13 is missing: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    unloaded = replace(facts, providers=(Provider("CUDAExecutionProvider", False, problem),))
    assert probe.try_on(unloaded).how == f"CUDAExecutionProvider does not load: {problem}"


def test_the_table_names_every_ability(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "run TensorRT engines" in out and "[export] is installed" in out


def test_the_model_providers_are_tried_with_is_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(IDENTITY_MODEL), full_check=True)
