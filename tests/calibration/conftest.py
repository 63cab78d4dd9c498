"""A bundle whose matrices are large enough to quantise, and its variants."""

import shutil
from pathlib import Path

import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights.calibration import calibrate_weights
from starflow.calibration.weights.results import WeightCalibration, WeightRequest
from starflow.calibration.weights.treatment import WeightType
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from tests.models import class_config, write_checkpoint

IMAGES, SEED, BUDGET = 8, 3, 0.004


@pytest.fixture(scope="session")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random class-conditional STARFlow of width 128, fp32 and fp16, batch 4; not to be changed."""
    folder = tmp_path_factory.mktemp("wide")
    write_checkpoint(folder / "checkpoint", class_config(channels=128))
    options = ExportOptions(precisions=("fp32", "fp16"), batch=4)
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    return folder / "bundle"


@pytest.fixture(scope="session")
def calibrated(wide_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WeightCalibration]]:
    """The same with int8, int4 and fp8 variants; not to be changed."""
    root = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(wide_bundle, root)
    found = []
    wanted: dict[WeightType, float] = {"int8": BUDGET, "int4": 10 * BUDGET, "fp8": 10 * BUDGET}
    for weights, budget in wanted.items():
        bundle = Bundle.open(root)
        request = WeightRequest(weights, budget=budget, threads=1)
        found += calibrate_weights(bundle, request, draw_cases(bundle, IMAGES, SEED))
    return root, found
