"""An integration plan as a bundle keeps it: the plan, and what was measured."""

from pydantic import Field

from starflow.runtime.plans.calibrated_plan import CalibratedPlan
from starflow.runtime.plans.integration_plan import IntegrationPlan


class CalibratedIntegrationPlan(CalibratedPlan):
    """A calibrated plan of a continuous flow. Its reference is a fine integration.

    Attributes:
        default_error: Error of the plan that runs if none is stored.
        default_milliseconds: Time of that plan, measured in turn with this one.
        plan: Solver and steps.
    """

    default_error: float = Field(ge=0)
    default_milliseconds: float = Field(gt=0)
    plan: IntegrationPlan
