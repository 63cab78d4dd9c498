"""How plans are calibrated for each family of flows. A further family is a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starflow.calibration.plans.decode_plan import calibrate_plan
from starflow.calibration.plans.decode_plan_report import decode_report
from starflow.calibration.plans.integration_plan import calibrate_integration
from starflow.calibration.plans.integration_plan_report import integration_report
from starflow.calibration.plans.plan_report import PlanReport
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest


@dataclass(frozen=True)
class PlanCalibration:
    """A family's way to a plan."""

    # Of bundle, variant, backend, cases, options and `progress`; its result has the `spec` to store, or None.
    calibrate: Callable[..., Any]
    report: Callable[[Any], PlanReport]  # of that result
    # Fields of `PlanOptions` that only some families know, and this one does.
    own_options: tuple[str, ...] = ()


# By the type of the manifest.
PLAN_CALIBRATIONS: dict[type, PlanCalibration] = {
    AutoregressiveManifest: PlanCalibration(calibrate_plan, decode_report, ("widths", "fixed")),
    ContinuousManifest: PlanCalibration(calibrate_integration, integration_report),
}
