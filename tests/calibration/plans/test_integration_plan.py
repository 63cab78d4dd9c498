"""Plans of continuous flows: the fewest passes within a budget, stored and run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starflow.calibration.cases import draw_cases
from starflow.calibration.plans.integration_plan import IntegrationCalibration, calibrate_integration
from starflow.calibration.plans.runs import PlanOptions
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plans.integration_plan import integration_plan
from starflow.training.checkpoint import save_checkpoint
from tests.models import velocity_config, write_velocity

BUDGET = 1e-3


@pytest.fixture(scope="module")
def bundle_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field strong enough that its paths bend; not to be changed."""
    folder, config = tmp_path_factory.mktemp("bent"), velocity_config()
    network = write_velocity(folder / "checkpoint", config)
    with torch.no_grad():
        network.get_parameter("proj_out.weight").mul_(6)
    save_checkpoint(folder / "checkpoint", config, network.state_dict())
    export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(precisions=("fp32", "fp16"), batch=2))
    return folder / "bundle"


@pytest.fixture(scope="module")
def found(bundle_root: Path) -> IntegrationCalibration:
    bundle = Bundle.open(bundle_root)
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as backend:
        return calibrate_integration(bundle, variant, backend, draw_cases(bundle, 4, 0), PlanOptions(BUDGET, 2))


def test_the_choice_is_within_the_budget(found: IntegrationCalibration, bundle_root: Path) -> None:
    spec = found.spec
    assert 0 < spec.error <= BUDGET
    # Independent of the search: the chosen plan again, against 250 steps.
    with Sampler.open(bundle_root, variant="cpu-fp32", threads=1) as sampler:
        noise, labels = sampler.noise(4, seed=1), [0, 1, 2, 0]

        def end(plan: Any) -> np.ndarray:
            sampler.plan = plan
            return sampler.generate(noise, labels, guidance=1.0)

        exact = end(integration_plan("rk4", 250))
        error = np.linalg.norm(end(spec.plan) - exact) / np.linalg.norm(exact)
        assert error <= BUDGET and error == pytest.approx(spec.error, abs=0.1 * BUDGET)


def test_the_search_finds_the_fewest_steps(found: IntegrationCalibration, bundle_root: Path) -> None:
    """Runge's method with equal steps is tried first; here every number of steps is, one after the other."""
    case = draw_cases(Bundle.open(bundle_root), 4, 0).calibrate
    with Sampler.open(bundle_root, variant="cpu-fp32", threads=1, plan=found.reference) as sampler:
        exact = sampler.generate(case.noise, case.condition, guidance=case.guidance)
        steps, error = 0, np.inf
        while error > BUDGET:
            steps += 1
            sampler.plan = integration_plan("rk4", steps)
            x = sampler.generate(case.noise, case.condition, guidance=case.guidance)
            error = float(np.linalg.norm(x - exact) / np.linalg.norm(exact))
    within = [t.passes for t in found.trials if (t.plan.solver, t.grid) == ("rk4", "uniform") and t.error <= BUDGET]
    assert min(within) == 4 * steps and steps > 2


def test_errors_fall_with_the_steps_and_the_fastest_has_few_passes(found: IntegrationCalibration) -> None:
    for solver in ("rk4", "heun"):
        trials = {t.passes: t.error for t in found.trials if (t.plan.solver, t.grid) == (solver, "uniform")}
        errors = [trials[passes] for passes in sorted(trials)]
        assert len(errors) >= 2 and errors == sorted(errors, reverse=True)
    assert found.reference.solver == "rk4" and found.reference.steps >= 64
    passes = [trial.passes for trial in found.trials if trial.error <= BUDGET]
    assert found.spec.passes <= 1.5 * min(passes) + 4


def test_command_stores_a_plan_that_runs(bundle_root: Path, tmp_path: Path, capsys: Any) -> None:
    root, file, plot = tmp_path / "bundle", tmp_path / "plan.json", tmp_path / "plan.png"
    page = tmp_path / "plan.html"
    shutil.copytree(bundle_root, root)
    command = [
        "calibrate",
        str(root),
        "--plan",
        "--budget",
        "0.01",
        "--images",
        "2",
        "--repetitions",
        "1",
        "--threads",
        "1",
    ]
    assert main([*command, "--plan-file", str(file), "--plot", str(plot), "--report", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["error"] <= 0.01 and told["trials"] and plot.stat().st_size > 1000
    (stored,) = Bundle.open(root).continuous.plans
    assert str(stored.plan) in page.read_text() and "<svg" in page.read_text()
    assert stored.plan.model_dump(mode="json") == told["plan"] == json.loads(file.read_text())
    assert (stored.backend, stored.variant) == ("onnxruntime cpu", "cpu-fp32")
    with Sampler.open(root, threads=1) as auto, Sampler.open(root, threads=1, plan=file) as given:
        assert auto.plan == given.plan == stored.plan
    with Sampler.open(root, threads=1, variant="portable-fp32") as other:
        assert other.decoding == "heun, 16 steps", "a plan is for its variant"
    assert main(command) == 0
    assert "stored" in capsys.readouterr().out
    assert len(Bundle.open(root).continuous.plans) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--plan", "--widths", "4"], 2, "autoregressive"),
        (["--plan", "--fixed"], 2, "autoregressive"),
        (["--plan", "--budget", "1e-12"], 2, "larger --budget"),
        (["--weights", "int8"], 2, "is a continuous flow"),
    ],
)
def test_what_cannot_be(bundle_root: Path, arguments: list[str], status: int, says: str, capsys: Any) -> None:
    before = (bundle_root / "manifest.json").read_bytes()
    assert main(["calibrate", str(bundle_root), *arguments, "--images", "1"]) == status
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told
    assert (bundle_root / "manifest.json").read_bytes() == before
