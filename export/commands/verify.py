"""Check that every way of running a bundle gives the same numbers.

The reference is the checkpoint in PyTorch where --checkpoint names it, else the bundle's float32 variant on ONNX Runtime.
Exit status: 0 everything that ran agrees, 1 something does not, 2 wrong use. What could not run here is listed, never counted
as passed.

Examples:
  starflow verify digits.bundle --checkpoint examples/digits/checkpoint --report report.html
  starflow verify digits.bundle --network
  starflow verify digits.bundle --backend tensorrt --variants portable-fp16 --images 16 --json
"""

import argparse
from pathlib import Path

from starflow.runtime.commands.shape_argument import add_shape_argument


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument(
        "--checkpoint", type=Path, help="compare with this checkpoint, which the bundle was exported from"
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "network", "tensorrt"),
        help="what to run (default: onnxruntime, and tensorrt where there is a GPU)",
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="also run the portable variants as TensorRT's parser reads them, interpreted in NumPy; needs no GPU",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="compare the bundle's text encoder with this one (default: the one the checkpoint holds or names)",
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FOLDER",
        help="compare the bundle's encoder and decoders with this one's (default: the one in the checkpoint)",
    )
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="variants to run (default: all)")
    add_shape_argument(parser)
    parser.add_argument(
        "--images", type=int, metavar="N", help="images to sample, in whole batches (default: one batch)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and conditions (default: 0)")
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="guidance weight (default: 1 where the model takes it)"
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="PRECISION.KIND=VALUE",
        help="replace a tolerance, such as fp16.sample=0.05; kinds: given, block, sample, denoise, text, pixels",
    )
    parser.add_argument("--hashes", action="store_true", help="compare every file with its digest first")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a report as one HTML file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify, print, and write the report."""
    import json

    from starflow.export.verification.autoencoder import autoencoder_folder
    from starflow.export.verification.denoisers import without_reference
    from starflow.export.verification.guard import guard_variants
    from starflow.export.verification.report import write_report
    from starflow.export.verification.results import as_plain_values, print_table
    from starflow.export.verification.routes import NotRun, Reference, choose_variants, default_reference, find_routes
    from starflow.export.verification.text_encoder import text_encoder_folder
    from starflow.export.verification.tolerances import tolerances
    from starflow.export.verification.torch_reference import torch_reference
    from starflow.export.verification.verify import verify
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.commands.shape_argument import parse_shape
    from starflow.runtime.plain.atomic_write import check_file
    from starflow.runtime.plain.errors import UsageError
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.traces.case import draw_case

    chosen = tolerances(arguments.tolerance)
    if arguments.images is not None and arguments.images < 1:
        raise UsageError(f"--images {arguments.images}: give a number of at least 1")
    if arguments.report:
        check_file(arguments.report)
    bundle = Bundle.open(arguments.bundle)
    if arguments.hashes:
        bundle.verify_hashes()
    bundle = bundle.at_shape(parse_shape(arguments.shape))
    backends = [*(arguments.backend or ("onnxruntime", "tensorrt")), *(["network"] if arguments.network else [])]
    variants = choose_variants(bundle, arguments.variants)
    routes, not_run = find_routes(bundle, backends, variants)
    if not arguments.checkpoint:
        not_run += without_reference(bundle)
    text_encoder = text_encoder_folder(bundle, arguments.checkpoint, arguments.text_encoder)
    autoencoder = autoencoder_folder(bundle, arguments.checkpoint, arguments.autoencoder)
    not_run += [part for part in (text_encoder, autoencoder) if isinstance(part, NotRun)]
    reference: Reference = (
        torch_reference(arguments.checkpoint, bundle) if arguments.checkpoint else default_reference(bundle)
    )
    case = draw_case(bundle, arguments.images, arguments.seed, arguments.guidance)
    with progress_bar("verifying", enabled=not arguments.json) as bar:
        result = verify(
            bundle,
            reference,
            routes,
            case,
            chosen,
            text_encoder=text_encoder if isinstance(text_encoder, Path) else None,
            autoencoder=autoencoder if isinstance(autoencoder, Path) else None,
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
