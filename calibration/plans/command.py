"""The plan part of `starflow calibrate`: its arguments, and what they start."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import add_variant_argument
from starflow.runtime.commands.shape_argument import parse_shape
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.whole_number import whole_number

if TYPE_CHECKING:
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.manifest import Variant
    from starflow.runtime.plans.calibrated_decode_plan import CalibratedDecodePlan
    from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan

BUDGET = 1e-3


def configure_plan(parser: argparse._ActionsContainer) -> None:
    """Declare the arguments of plans."""
    add_variant_argument(
        parser, "variant to plan for, or auto as for sampling (default: the first one for the backend)"
    )
    parser.add_argument(
        "--widths", metavar="S,S,..", help="numbers of tokens in a pass to try (default: 2 to 64; autoregressive flows)"
    )
    parser.add_argument(
        "--fixed",
        action="store_true",
        help="allow only fixed numbers of passes, so that no device waits for the host (default on a GPU; "
        "autoregressive flows)",
    )
    parser.add_argument("--repetitions", type=int, default=7, help="number of timed repetitions (default: 7)")
    parser.add_argument("--plan-file", type=Path, metavar="FILE.json", help="write the plan to this file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot errors against passes into this file")


def run_plan(arguments: argparse.Namespace) -> int:
    """Calibrate, store and report; 0 whether or not a plan pays."""
    from starflow.calibration.budget import check_budget
    from starflow.calibration.cases import draw_cases, read_conditions
    from starflow.calibration.plans.families import PLAN_CALIBRATIONS
    from starflow.calibration.plans.runs import PlanOptions
    from starflow.runtime.autoregressive.sampling_loop import SEQUENTIAL
    from starflow.runtime.backends.choice import open_backend
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.plain.atomic_write import check_output, write_text
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.reports.plot import check_plot

    for path in (arguments.plan_file, arguments.report):
        if path:
            check_output(path)
    if arguments.plot:
        check_plot(arguments.plot)
    if arguments.budget is not None:
        check_budget(arguments.budget)
    if arguments.repetitions < 1:
        raise UsageError(f"--repetitions {arguments.repetitions}: give a number of at least 1")
    bundle = Bundle.open(arguments.bundle).at_shape(parse_shape(arguments.shape)).at_batch(arguments.batch)
    bundle.check_own()
    refuse_own_files(bundle, arguments.plan_file, arguments.report, arguments.plot)
    check_output(bundle.folder / "manifest.json")
    family = PLAN_CALIBRATIONS[type(bundle.manifest)]
    for option in ("widths", "fixed"):
        if getattr(arguments, option) and option not in family.own_options:
            raise UsageError(f"--{option} is for autoregressive flows; leave it out")
    widths = parse_widths(arguments.widths) if arguments.widths else PlanOptions.widths
    given = read_conditions(bundle, arguments.condition, arguments.null_condition, arguments.captions_file)
    cases = draw_cases(bundle, arguments.images, arguments.seed, arguments.guidance, given)
    variant, backend = open_backend(
        bundle,
        arguments.backend,
        variant=arguments.variant,
        provider=arguments.provider,
        threads=arguments.threads,
    )
    budget = default_budget(variant) if arguments.budget is None else arguments.budget
    options = PlanOptions(budget, arguments.repetitions, widths, arguments.fixed)
    with backend, progress_bar("calibrating", enabled=not arguments.json) as bar:
        found = family.calibrate(bundle, variant, backend, cases, options, progress=bar)
    # The bundle comes last: if a file cannot be written after all, it is as it was.
    report = family.report(found)
    if arguments.plan_file:
        plan = found.spec.plan if found.spec else SEQUENTIAL
        write_text(arguments.plan_file, plan.model_dump_json(indent=1, exclude_none=True) + "\n")
    if arguments.plot:
        report.write_plot(arguments.plot)
    if arguments.report:
        report.write_page(arguments.report, bundle.root.name)
    _store(bundle, backend.name, variant.name, found.spec)
    if arguments.json:
        print(json.dumps(report.values))
    else:
        report.print()
    return 0


def default_budget(variant: "Variant") -> float:
    """The error that a plan may add: 1e-3, or that of the variant's own weights if it is larger.

    With activations of 8 bits, passes over several tokens differ from single steps about as much as either differs from exact
    weights, since a last bit of attention decides how an activation is rounded. So a plan cannot be closer to them.
    """
    error = variant.quantization.error if variant.quantization else None
    return max(BUDGET, error or 0.0)


def _store(
    bundle: "Bundle", backend: str, variant: str, spec: "CalibratedDecodePlan | CalibratedIntegrationPlan | None"
) -> None:
    """Put a plan in the place of the one for this backend and variant; None removes that one."""
    from starflow.runtime.bundle.bundle import changing_manifest, replace_manifest

    with changing_manifest(bundle, variant) as whole:
        present = bundle.with_manifest(whole).at(bundle.place).manifest.plans
        others = (other for other in present if (other.backend, other.variant) != (backend, variant))
        plans = (*others, *([spec] if spec else []))
        if plans == present:
            return
        replace_manifest(bundle, whole.replaced({bundle.place: {"plans": plans}}))


def parse_widths(text: str) -> tuple[int, ...]:
    """Numbers of tokens in a pass, from the command line; UsageError if they are no numbers, or too small."""
    numbers = {whole_number(part) for part in text.split(",")}
    widths = tuple(sorted(number for number in numbers if number is not None))
    if None in numbers:
        raise UsageError(f"--widths {text}: give numbers with commas between them, such as 4,8,16")
    if widths[0] < 2:
        raise UsageError(f"--widths {text}: a chunk has at least 2 tokens")
    return widths
