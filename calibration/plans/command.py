"""The plan part of `starflow calibrate`: its arguments, and what they start."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starflow.runtime.commands.backend_arguments import add_backend_arguments
from starflow.runtime.commands.shape_argument import parse_shape
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.calibration.cases import Cases
    from starflow.runtime.backends.base import Backend
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.manifest import Variant
    from starflow.runtime.plans.calibrated_decode_plan import CalibratedDecodePlan
    from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan
    from starflow.runtime.plans.decode_plan import DecodePlan
    from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps

Result = TypeVar("Result")


def configure_plan(parser: argparse._ActionsContainer) -> None:
    """Declare the arguments of plans; those it shares with other calibrations are there."""
    add_backend_arguments(parser)
    parser.add_argument(
        "--condition", type=Path, metavar="FILE.npy", help="condition tokens [N, tokens, width] to sample"
    )
    parser.add_argument("--null-condition", type=Path, metavar="FILE.npy", help="null condition tokens [tokens, width]")
    parser.add_argument("--captions-file", type=Path, metavar="FILE.txt", help="captions to sample, one a line")
    parser.add_argument("--widths", metavar="S,S,..", help="numbers of tokens in a pass to try (default: 2 to 64)")
    parser.add_argument(
        "--fixed",
        action="store_true",
        help="fixed numbers of passes only, which no device has to wait for (default on a GPU)",
    )
    parser.add_argument("--repetitions", type=int, default=7, help="of every timing (default: 7)")
    parser.add_argument("--plan-file", type=Path, metavar="FILE.json", help="write the plan to a file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot errors against passes")


def run_plan(arguments: argparse.Namespace) -> int:
    """Calibrate, store and report; 0 whether or not a plan pays."""
    from starflow.calibration.cases import draw_cases, read_conditions
    from starflow.runtime.backends.choice import open_backend
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
    from starflow.runtime.plain.atomic_write import check_file

    for path in (arguments.plan_file, arguments.plot):
        if path:
            check_file(path)
    if arguments.repetitions < 1 or not arguments.budget > 0:
        raise UsageError("--repetitions and --budget take numbers above 0")
    bundle = Bundle.open(arguments.bundle).at_shape(parse_shape(arguments.shape))
    continuous = isinstance(bundle.manifest, ContinuousManifest)
    if continuous and (arguments.widths or arguments.fixed):
        raise UsageError("--widths and --fixed: are for autoregressive flows; a continuous flow has solvers and steps")
    given = read_conditions(bundle, arguments.condition, arguments.null_condition, arguments.captions_file)
    cases = draw_cases(bundle, arguments.images, arguments.seed, arguments.guidance, given)
    variant, backend = open_backend(
        bundle,
        arguments.backend,
        variant=arguments.variant,
        provider=arguments.provider,
        threads=arguments.threads,
    )
    with backend:
        return (_integration_plan if continuous else _decode_plan)(arguments, bundle, variant, backend, cases)


def _decode_plan(
    arguments: argparse.Namespace, bundle: "Bundle", variant: "Variant", backend: "Backend", cases: "Cases"
) -> int:
    from starflow.calibration.plans.decode_plan import PlanOptions, calibrate_plan
    from starflow.calibration.plans.decode_plan_report import as_json, print_report, write_plot
    from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
    from starflow.runtime.plain.progress import progress_bar

    options = PlanOptions(
        budget=arguments.budget,
        widths=_widths(arguments.widths) if arguments.widths else PlanOptions.widths,
        fixed=arguments.fixed or backend.name != "onnxruntime cpu",
        repetitions=arguments.repetitions,
    )
    with progress_bar("calibrating", enabled=not arguments.json) as bar:
        result = calibrate_plan(bundle, variant, backend, cases, options, progress=bar)
    _store(bundle, backend.name, variant.name, result.spec)
    _write_plan(arguments.plan_file, result.plan if result.spec else SEQUENTIAL)
    return _report(arguments, result, write_plot, as_json, print_report)


def _integration_plan(
    arguments: argparse.Namespace, bundle: "Bundle", variant: "Variant", backend: "Backend", cases: "Cases"
) -> int:
    from starflow.calibration.plans.integration_plan import calibrate_integration
    from starflow.calibration.plans.integration_plan_report import as_json, print_report, write_plot
    from starflow.runtime.plain.progress import progress_bar

    with progress_bar("calibrating", enabled=not arguments.json) as bar:
        result = calibrate_integration(
            bundle, variant, backend, cases, arguments.budget, arguments.repetitions, progress=bar
        )
    _store(bundle, backend.name, variant.name, result.spec)
    _write_plan(arguments.plan_file, result.spec.plan)
    return _report(arguments, result, write_plot, as_json, print_report)


def _report(
    arguments: argparse.Namespace,
    result: Result,
    write_plot: Callable[[Result, Path], None],
    as_json: Callable[[Result], dict[str, Any]],
    print_report: Callable[[Result], None],
) -> int:
    """Tell what was found in the forms that were asked for."""
    if arguments.plot:
        write_plot(result, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(result)))
    else:
        print_report(result)
    return 0


def _store(
    bundle: "Bundle", backend: str, variant: str, spec: "CalibratedDecodePlan | CalibratedIntegrationPlan | None"
) -> None:
    """Put a plan in the place of the one for this backend and variant; None removes that."""
    from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
    from starflow.runtime.bundle.bundle import Bundle, changing_manifest, replace_manifest

    with changing_manifest(bundle.root) as whole:
        manifest = Bundle(bundle.root, whole).at_shape(bundle.shape).manifest
        others = (other for other in manifest.plans if (other.backend, other.variant) != (backend, variant))
        plans = (*others, *([spec] if spec else []))
        if plans == manifest.plans:
            return
        if isinstance(whole, AutoregressiveManifest):
            replace_manifest(bundle.root, whole.replaced(bundle.shape, plans=plans))
        else:
            replace_manifest(bundle.root, whole.model_copy(update={"plans": plans}))


def _write_plan(path: Path | None, plan: "DecodePlan | FixedSteps | AdaptiveSteps") -> None:
    from starflow.runtime.plain.atomic_write import atomic_file

    if path:
        with atomic_file(path) as temporary:
            temporary.write_text(plan.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"--widths {text}: give numbers with commas between them, such as 4,8,16") from None
    if widths[0] < 2:
        raise UsageError(f"--widths {text}: a chunk has at least 2 tokens")
    return widths
