"""The arguments by which commands choose what runs a bundle."""

import argparse
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.shape_argument import add_shape_argument, parse_shape
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps


def add_backend_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --backend, --provider, --threads and --shape."""
    add_shape_argument(parser)
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="{auto,onnxruntime,tensorrt}",
        help="what runs the bundle (default: tensorrt where there is a GPU with engines for it, else onnxruntime)",
    )
    parser.add_argument(
        "--provider",
        default="cpu",
        metavar="{cpu,cuda,tensorrt}",
        help="ONNX Runtime's execution provider (default: cpu); the others need onnxruntime-gpu",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="threads within an operator on the CPU (default: one or all cores, whichever is measured to be faster)",
    )


def add_plan_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --plan."""
    parser.add_argument(
        "--plan",
        default="auto",
        metavar="auto|sequential|FILE",
        help="how tokens are decoded (continuous flows: integrated): by the plan that `starflow calibrate --plan` stored, if "
        "any (default); one by one; or as a plan's JSON file says",
    )


def add_integration_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --solver, --steps and --tolerance."""
    group = parser.add_argument_group("continuous flows", "in place of --plan")
    group.add_argument("--solver", metavar="{euler,midpoint,heun,rk4,dopri5}", help="ODE solver (default: heun)")
    group.add_argument("--steps", type=int, metavar="N", help="equal steps from noise to data (default: 16)")
    group.add_argument("--tolerance", type=float, metavar="E", help="error allowed in a step of dopri5 (default: 1e-4)")


def chosen_plan(arguments: argparse.Namespace) -> "str | FixedSteps | AdaptiveSteps":
    """The plan that was asked for, as `Sampler.open` takes it.

    Raises:
        UsageError: a plan and a solver, or what does not go together.
    """
    from starflow.runtime.plans.integration_plan import integration_plan

    given = (arguments.solver, arguments.steps, arguments.tolerance)
    if given == (None, None, None):
        return str(arguments.plan)
    if arguments.plan != "auto":
        raise UsageError(f"--plan {arguments.plan}: says how to integrate; leave out --solver, --steps and --tolerance")
    return integration_plan(*given)


def backend_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, as `Sampler.open` takes it."""
    shape = parse_shape(arguments.shape)
    return {"backend": arguments.backend, "provider": arguments.provider, "threads": arguments.threads, "shape": shape}
