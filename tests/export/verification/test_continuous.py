"""Verification of continuous flows: right routes agree, planted faults are found where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow.export.verification.routes import Route, default_reference
from starflow.export.verification.tolerances import DEFAULTS
from starflow.export.verification.torch_reference import TorchReference
from starflow.export.verification.verify import verify
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.traces.case import draw_case
from tests.models import velocity_config, write_velocity


def test_every_way_of_running_agrees_with_pytorch(
    continuous_checkpoint: Path, continuous_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    report = tmp_path / "report.html"
    command = ["verify", str(continuous_bundle), "--checkpoint", str(continuous_checkpoint), "--network", "--json"]
    assert main([*command, "--report", str(report)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and told["guidance"] == 1
    routes = {m["route"] for m in told["measurements"]}
    assert routes == {
        *(f"onnxruntime {name}" for name in ("cpu-fp32", "portable-fp32", "cpu-fp16", "portable-fp16")),
        "network portable-fp32",
        "network portable-fp16",
    }
    assert {m["kind"] for m in told["measurements"]} == {"given", "sample"}
    for m in told["measurements"]:
        if "fp32" in m["route"]:
            assert m["scaled"] < 1e-5, "float32 is held to more than the default tolerance"
        assert len(m["per_token"]) == 16, "one error a step"
    text = report.read_text()
    assert "steps from noise to data" in text and "PASSED" in text


class FaultyBackend(OnnxRuntimeBackend):
    """Another guidance weight, or NaN from some pass on."""

    def __init__(self, bundle: Bundle, route: Route, fault: str) -> None:
        super().__init__(bundle, route.variant, threads=1)
        self._fault = fault

    def continuous_runner(self) -> Any:
        runner = super().continuous_runner()
        advance, fault = runner.advance, self._fault
        done = 0

        def changed(passes: int) -> None:
            nonlocal done
            done += passes
            if fault == "guidance":
                runner.store("guidance", np.full(2, 1.5, np.float32))
            elif done > 8:
                runner.store("point", np.full_like(runner.fetch("point"), np.nan))
            advance(passes)

        if not hasattr(runner, "faulty"):
            runner.faulty = True  # type: ignore[attr-defined]
            runner.advance = changed  # type: ignore[method-assign]
        return runner


@pytest.mark.parametrize("fault", ["guidance", "nan"])
def test_planted_faults_are_found(continuous_bundle: Path, fault: str) -> None:
    bundle = Bundle.open(continuous_bundle)
    reference = default_reference(bundle)
    route = Route("faulty", bundle, reference.variant, lambda: FaultyBackend(bundle, reference, fault))
    result = verify(bundle, reference, [route], draw_case(bundle), DEFAULTS)
    assert not result.passed
    failed = {m.kind: m for m in result.measurements if not m.passed}
    assert "sample" in failed
    if fault == "nan":
        finding = failed["sample"].finding
        assert finding and "(step 4, image 0)" in finding, "eight passes of Heun's method are four steps"
    else:
        assert "given" in failed


def test_a_checkpoint_of_another_bundle(continuous_bundle: Path, tmp_path: Path) -> None:
    write_velocity(tmp_path / "other", velocity_config(), seed=5)
    with pytest.raises(CheckpointError, match="exported from another checkpoint"):
        TorchReference(tmp_path / "other", Bundle.open(continuous_bundle))


def test_a_backend_hands_out_one_runner(continuous_bundle: Path) -> None:
    bundle = Bundle.open(continuous_bundle)
    with OnnxRuntimeBackend(bundle, bundle.variant("cpu-fp32", "cpu"), threads=1) as opened:
        backend: Backend = opened
        runner = backend.continuous_runner()
        assert isinstance(runner, ContinuousRunner) and runner is backend.continuous_runner()
