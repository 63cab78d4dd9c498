"""A bundle whose matrices are large enough to quantise, and its variants."""

import pickle
import shutil
from pathlib import Path

import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights.calibration import calibrate_weights
from starflow.calibration.weights.results import WeightCalibration, WeightRequest
from starflow.calibration.weights.treatment import WeightType
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from tests.made_once import MadeOnce
from tests.models import class_config, write_checkpoint

IMAGES, SEED, BUDGET = 8, 3, 0.004


@pytest.fixture(scope="session")
def wide_bundle(made_once: MadeOnce) -> Path:
    """A random class-conditional STARFlow of width 128, fp32 and fp16, batch 4; not to be changed."""

    def fill(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", class_config(channels=128, layers_per_block=(1, 1)))
        options = ExportOptions(precisions=("fp32", "fp16"), batch=4)
        export_checkpoint(folder / "checkpoint", folder / "bundle", options)

    return made_once("wide", fill) / "bundle"


@pytest.fixture(scope="session")
def calibrated(wide_bundle: Path, made_once: MadeOnce) -> tuple[Path, list[WeightCalibration]]:
    """The same with int8, int4 and fp8 variants; not to be changed."""
    wanted: dict[WeightType, float] = {"int8": BUDGET, "int4": 10 * BUDGET, "fp8": 10 * BUDGET}

    def fill(folder: Path) -> None:
        root, found = folder / "bundle", []
        shutil.copytree(wide_bundle, root)
        for weights, budget in wanted.items():
            bundle = Bundle.open(root)
            request = WeightRequest(weights, budget=budget, threads=1, product="block")
            found += calibrate_weights(bundle, request, draw_cases(bundle, IMAGES, SEED))
        (folder / "found.pickle").write_bytes(pickle.dumps(found))

    made = made_once("calibrated", fill)
    return made / "bundle", pickle.loads((made / "found.pickle").read_bytes())
