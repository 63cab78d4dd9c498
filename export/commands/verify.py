"""Check that every way of running a bundle gives the same numbers.

The reference is the checkpoint in PyTorch if --checkpoint names it, else the bundle's float32 variant on ONNX Runtime. Exit
status: 0 if everything that ran agrees with the reference, 1 if something does not, 2 for wrong use. What could not run on this
machine is listed and never counts as passed.

Examples:
  starflow verify digits.bundle --checkpoint examples/digits/checkpoint --report report.html
  starflow verify digits.bundle --checkpoint out/digits/run/checkpoint --student digits.student
  starflow verify digits.bundle --network
  starflow verify digits.bundle --backend tensorrt --variant portable-fp16 --images 16 --json
  starflow verify digits.bundle --backend onnxruntime --provider cpu cuda
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.backend_arguments import add_variant_argument
from starflow.runtime.commands.batch_argument import add_batch_argument
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.commands.shape_argument import add_shape_argument
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.export.verification.routes import BackendName


PROVIDERS = ("cpu", "cuda", "tensorrt")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    running = parser.add_argument_group("what runs")
    running.add_argument(
        "--backend",
        nargs="+",
        choices=("onnxruntime", "network", "tensorrt", *(f"onnxruntime-{provider}" for provider in PROVIDERS[1:])),
        metavar="{onnxruntime,network,tensorrt}",
        help="backends to run the bundle on (default: onnxruntime and tensorrt)",
    )
    running.add_argument(
        "--provider",
        nargs="+",
        choices=PROVIDERS,
        default=["cpu"],
        metavar="{cpu,cuda,tensorrt}",
        help="execution providers of ONNX Runtime to run it on (default: cpu); the others need onnxruntime-gpu",
    )
    running.add_argument(
        "--network",
        action="store_true",
        help="also run the portable variants as TensorRT's parser reads them, in NumPy; needs tensorrt-rtx but no GPU",
    )
    add_variant_argument(running, "variants to run (default: all)", several=True)
    add_shape_argument(running)
    add_batch_argument(running)
    running.add_argument(
        "--hashes", action="store_true", help="first compare every file with its digest in the manifest"
    )
    reference = parser.add_argument_group("what it is compared with")
    reference.add_argument("--checkpoint", type=Path, help="checkpoint that the bundle was exported from")
    reference.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="text encoder that the bundle was exported with (default: the one that the checkpoint holds or names)",
    )
    reference.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FOLDER",
        help="autoencoder that the bundle was exported with (default: the one in the checkpoint)",
    )
    reference.add_argument(
        "--student",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="student that the bundle was exported with (give it several times for several flow blocks)",
    )
    reference.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="PRECISION.KIND=VALUE",
        help="replace a tolerance, such as fp16.sample=0.05; kinds are given, block, sample, denoise, text, pixels "
        "and student",
    )
    sampled = parser.add_argument_group("what is sampled")
    sampled.add_argument(
        "--images", type=int, metavar="N", help="number of images, rounded up to whole batches (default: one batch)"
    )
    sampled.add_argument("--seed", type=int, default=0, help="seed of the noise and the conditions (default: 0)")
    sampled.add_argument(
        "--guidance", type=float, metavar="W", help="guidance weight (default: 1 if the model takes guidance)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--report", type=Path, metavar="FILE", help="write a report to this HTML file")
    output.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 if everything that ran agrees with the reference, 1 if not."""
    import json

    from starflow.export.verification.network_routes import find_network_routes
    from starflow.export.verification.networks import (
        autoencoder_folder,
        denoiser_name,
        student_folders,
        text_encoder_folder,
    )
    from starflow.export.verification.report import write_report
    from starflow.export.verification.results import as_plain_values, print_table
    from starflow.export.verification.routes import NotRun, Reference, choose_variants, default_reference, find_routes
    from starflow.export.verification.tolerances import tolerances
    from starflow.export.verification.torch_reference import TorchReference
    from starflow.export.verification.verify import guard_variants, verify
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.commands.shape_argument import parse_shape
    from starflow.runtime.plain.atomic_write import check_output
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.traces.case import draw_case

    chosen = tolerances(arguments.tolerance)
    if arguments.images is not None and arguments.images < 1:
        raise UsageError(f"--images {arguments.images}: give a number of at least 1")
    if arguments.report:
        check_output(arguments.report)
    bundle = Bundle.open(arguments.bundle)
    refuse_own_files(bundle, arguments.report)
    if arguments.hashes:
        bundle.verify_hashes()
    bundle = bundle.at_shape(parse_shape(arguments.shape)).at_batch(arguments.batch)
    variants = choose_variants(bundle, arguments.variant)
    backends = _backends(arguments)
    routes, not_run = find_routes(bundle, backends, variants)
    network_routes, networks_not_run = find_network_routes(bundle, backends)
    not_run += networks_not_run
    if not arguments.checkpoint:
        missing = "it has no reference here; name --checkpoint"
        not_run += [NotRun(denoiser_name(spec), missing) for spec in bundle.manifest.denoisers]
    text_encoder = text_encoder_folder(bundle, arguments.checkpoint, arguments.text_encoder)
    autoencoder = autoencoder_folder(bundle, arguments.checkpoint, arguments.autoencoder)
    not_run += [part for part in (text_encoder, autoencoder) if isinstance(part, NotRun)]
    students, students_not_run = student_folders(bundle, arguments.student)
    not_run += students_not_run
    checkpoint = arguments.checkpoint
    reference: Reference = TorchReference(checkpoint, bundle) if checkpoint else default_reference(bundle)
    case = draw_case(bundle, arguments.images, arguments.seed, arguments.guidance)
    with progress_bar("verifying", enabled=not arguments.json) as bar:
        result = verify(
            bundle,
            reference,
            routes,
            case,
            chosen,
            network_routes=network_routes,
            text_encoder=text_encoder if isinstance(text_encoder, Path) else None,
            autoencoder=autoencoder if isinstance(autoencoder, Path) else None,
            students=students,
            not_run=not_run,
            guard=guard_variants(bundle, variants),
            progress=bar,
        )
    if arguments.report:
        write_report(arguments.report, bundle, result, chosen)
    if arguments.json:
        print(json.dumps(as_plain_values(bundle, result)))
    else:
        print_table(result)
    return 0 if result.passed else 1


def _backends(arguments: argparse.Namespace) -> "list[BackendName]":
    """What is run, as `find_routes` names it: ONNX Runtime once for each provider."""
    asked: list[Any] = [
        *(arguments.backend or ("onnxruntime", "tensorrt")),
        *(["network"] if arguments.network else []),
    ]
    if "onnxruntime" not in asked and arguments.provider != ["cpu"]:
        raise UsageError(
            f"--provider {' '.join(arguments.provider)}: only --backend onnxruntime has providers; leave it out"
        )
    providers: list[Any] = ["onnxruntime" if name == "cpu" else f"onnxruntime-{name}" for name in arguments.provider]
    return [name for backend in asked for name in (providers if backend == "onnxruntime" else [backend])]
