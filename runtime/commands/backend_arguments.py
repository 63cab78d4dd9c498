"""The options that say what runs a bundle, and how: variant, backend, shape, batch size, plan."""

import argparse
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.batch_argument import add_batch_argument
from starflow.runtime.commands.shape_argument import add_shape_argument, parse_shape
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps


def add_variant_argument(
    parser: argparse._ActionsContainer,
    text: str = "variant to run, or auto for the fastest by the times that calibrate took on this processor (default: the first "
    "one made for the backend, which is exact)",
    *,
    several: bool = False,
) -> None:
    """Declare --variant, and --variants as its hidden alias."""
    options: dict[str, Any] = {"metavar": "NAME", "nargs": "+" if several else None}
    parser.add_argument("--variant", help=text, **options)
    parser.add_argument("--variants", dest="variant", help=argparse.SUPPRESS, **options)


def add_backend_arguments(
    parser: argparse._ActionsContainer, batch: str = "the largest", *, sizes: bool = True
) -> None:
    """Declare --backend, --provider and --threads, and with `sizes` --shape and --batch; `batch` is the default of the last."""
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="{auto,onnxruntime,tensorrt}",
        help="what runs the bundle (default: tensorrt if there is a GPU and an engine for it, else onnxruntime)",
    )
    parser.add_argument(
        "--provider",
        default="cpu",
        metavar="{cpu,cuda,tensorrt}",
        help="execution provider of ONNX Runtime (default: cpu); the others need onnxruntime-gpu",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="number of CPU threads within an operator (default: one or all cores, whichever is measured to be faster)",
    )
    if sizes:
        add_shape_argument(parser)
        add_batch_argument(parser, batch)


def add_plan_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declare --plan, --solver, --steps and --tolerance, and return the group of autoregressive flows."""
    decoding = parser.add_argument_group("decoding of autoregressive flows")
    decoding.add_argument(
        "--plan",
        default="auto",
        metavar="auto|sequential|student|FILE",
        help="decode plan: the one that `starflow calibrate --plan` stored in the bundle, if any (auto, the default); token "
        "by token (sequential); flow blocks that have a student by it, in one pass and not exactly (student), or by it and N exact "
        "passes (student+N), the others as with auto; or the one in a JSON file",
    )
    integration = parser.add_argument_group(
        "integration of continuous flows", "--plan auto and --plan FILE apply here as well, unless a solver is chosen:"
    )
    integration.add_argument("--solver", metavar="{euler,midpoint,heun,rk4,dopri5}", help="ODE solver (default: heun)")
    integration.add_argument("--steps", type=int, metavar="N", help="number of equal steps (default: 16)")
    integration.add_argument(
        "--tolerance", type=float, metavar="E", help="largest error of one step of dopri5 (default: 1e-4)"
    )
    return decoding


def chosen_plan(arguments: argparse.Namespace) -> "str | FixedSteps | AdaptiveSteps":
    """The plan that was asked for, as `Sampler.open` takes it.

    Raises:
        UsageError: a plan and a solver are given, or two values exclude each other.
    """
    from starflow.runtime.plans.integration_plan import integration_plan

    given = (arguments.solver, arguments.steps, arguments.tolerance)
    if given == (None, None, None):
        return str(arguments.plan)
    if arguments.plan != "auto":
        raise UsageError(f"--plan {arguments.plan}: leave out --solver, --steps and --tolerance, or leave out --plan")
    return integration_plan(*given)


def backend_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs the bundle, as `Sampler.open` takes it."""
    options = {name: getattr(arguments, name, None) for name in ("backend", "provider", "threads", "batch")}
    return options | {"shape": parse_shape(getattr(arguments, "shape", None))}
