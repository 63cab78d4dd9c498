"""What counts as a sample that broke down."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starflow.calibration.cases import draw_cases
from starflow.calibration.weights.sample_error import sample
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError
from tests.failing_bundle import make_failing


def test_noise_out_of_reach_breaks_down(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    case = draw_cases(bundle, 1, 0).check
    case = replace(case, noise=np.full_like(case.noise, 3e38))
    assert np.isnan(sample(bundle, bundle.variant("cpu-fp32", "cpu"), case, 1)).all()


def test_a_run_that_fails_does_not(tiny_bundle: Path, tmp_path: Path) -> None:
    """The calibration would go on, and blame the matrices."""
    make_failing(tiny_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    with pytest.raises(BackendError, match="ONNX Runtime cannot run it"):
        sample(bundle, bundle.variant("cpu-fp32", "cpu"), draw_cases(bundle, 1, 0).check, 1)
