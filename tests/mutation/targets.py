"""The modules whose errors would be silent, each with the fastest tests that cover it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A module to mutate.

    Attributes:
        path: The module, from the root of the repository.
        tests: Test files, or parts of them as pytest names them. They must run without `conftest.py`.
        most: Number of mutants that are drawn at most.
    """

    path: str
    tests: tuple[str, ...]
    most: int = 60

    @property
    def module(self) -> str:
        """Its import name."""
        return "starflow." + ".".join(Path(self.path).with_suffix("").parts)


PLANS, WEIGHTS, RUNTIME = "tests/calibration/plans", "tests/calibration/weights", "tests/runtime"
SOLVERS = f"{RUNTIME}/ode/test_solvers.py"

TARGETS = (
    Target("calibration/plans/search.py", (f"{PLANS}/test_search.py",)),
    Target("calibration/plans/budget_search.py", (f"{PLANS}/test_budget_search.py",)),
    Target("calibration/plans/candidates.py", (f"{PLANS}/test_candidates.py", f"{PLANS}/test_explore.py")),
    Target("calibration/plans/costs.py", (f"{PLANS}/test_costs.py",)),
    Target(
        "calibration/plans/decode_plan.py",
        (f"{PLANS}/test_decode_plan_choice.py", f"{PLANS}/test_decode_plan_world.py"),
    ),
    Target("calibration/plans/integration_search.py", (f"{PLANS}/test_integration_search.py",)),
    Target("calibration/plans/integration_plan.py", (f"{PLANS}/test_integration_choice.py",)),
    Target("calibration/plans/time_density.py", (f"{PLANS}/test_time_density.py",)),
    Target("calibration/weights/gptq.py", (f"{WEIGHTS}/test_gptq.py",)),
    Target("calibration/weights/number_format.py", (f"{WEIGHTS}/test_number_format.py",)),
    Target("calibration/weights/precision_choice.py", (f"{WEIGHTS}/test_precision_choice.py",)),
    Target("calibration/weights/budget_choice.py", (f"{WEIGHTS}/test_budget_choice.py",)),
    Target("calibration/weights/candidates.py", (f"{WEIGHTS}/test_candidates.py",)),
    Target("calibration/weights/treatment.py", (f"{WEIGHTS}/test_treatment.py",)),
    Target("calibration/weights/sources.py", (f"{WEIGHTS}/test_sources.py",)),
    Target("runtime/plans/decode_plan.py", (f"{RUNTIME}/plans/test_decode_plan.py",)),
    Target("runtime/plans/calibrated_decode_plan.py", (f"{RUNTIME}/plans/test_calibrated_decode_plan.py",)),
    Target("runtime/plans/integration_plan.py", (f"{RUNTIME}/plans/test_integration_plan.py",)),
    Target("runtime/plans/calibrated_integration_plan.py", (f"{RUNTIME}/plans/test_integration_plan.py",)),
    Target("runtime/plain/guidance.py", (f"{RUNTIME}/plain/test_guidance.py",)),
    Target("runtime/plain/bits_per_dim.py", (f"{RUNTIME}/plain/test_bits_per_dim.py",)),
    Target("runtime/ode/tableau.py", (SOLVERS,)),
    Target("runtime/ode/time_grid.py", (SOLVERS,)),
    Target("runtime/ode/fixed_step.py", (SOLVERS,)),
    Target("runtime/ode/divergence.py", (SOLVERS,)),
    Target("runtime/ode/dormand_prince.py", (SOLVERS,)),
    Target("export/tensorrt/parser_guard.py", ("tests/export/tensorrt/test_parser_guard_rules.py",)),
    Target("export/autoregressive/lowering.py", ("tests/export/autoregressive/test_lowering.py",)),
)
