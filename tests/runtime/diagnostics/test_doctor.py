"""`starflow doctor`, in processes of its own: what is blocked there is blocked from the first import on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.command_line import main
from starflow.runtime.diagnostics.doctor import examine
from starflow.runtime.diagnostics.machine import IDENTITY_MODEL
from starflow.runtime.plain.install_hint import install_hint
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


def doctor(*blocked: str, path: Path | None = None) -> dict[str, Any]:
    """What it says where some packages cannot be imported; `path` is searched for programs first."""
    environment = os.environ | ({"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {})
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
    assert {"name": "CPUExecutionProvider", "loads": True} in said["providers"]
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
    assert ability(said, "run bundles on ONNX Runtime, CPU") == (False, "pip install --force-reinstall onnxruntime")


@pytest.mark.parametrize(("capability", "rtx"), [("8.9", True), ("9.0", False)])
def test_nvidia_smi_is_asked_where_cuda_python_is_missing(tmp_path: Path, capability: str, rtx: bool) -> None:
    """A program of that name stands for the driver's; the flavours are the real ones."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'NVIDIA Something, {capability}, 24564, 580.65.06'\n")
    tool.chmod(0o755)
    said = doctor("cuda", "tensorrt", path=tmp_path)
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


def test_gpus_are_those_the_tensorrt_backend_sees(simulate: Simulate) -> None:
    simulate(capability="12.0", gpus=2, memory=3 << 30)
    cuda = sys.modules["cuda.bindings.runtime"]
    cuda.cudaDriverGetVersion = lambda: (cuda.cudaError_t.cudaSuccess, 13040)  # type: ignore[attr-defined]
    diagnosis = examine()
    assert [(gpu.compute_capability, gpu.memory_bytes) for gpu in diagnosis.gpus.found] == [("12.0", 3 << 30)] * 2
    assert diagnosis.gpus.driver == "for CUDA 13.4"
    (running,) = [ability for ability in diagnosis.abilities if ability.what == "run TensorRT engines"]
    assert running.possible


def test_the_table_names_every_ability(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "run TensorRT engines" in out and "[export] is installed" in out


def test_the_model_providers_are_tried_with_is_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(IDENTITY_MODEL), full_check=True)
