"""Make a bundle faster within an error that you allow: quantised weights, or a plan with fewer passes of the network.

--weights adds variants whose weights are stored in 8 or 4 bits: cpu-int8 or cpu-int4 for ONNX Runtime, made from cpu-fp32;
cuda-int8 or -int4 for its CUDA provider, made from cuda-fp16; and portable-int8, -int4 or -fp8 for engines, made from
portable-fp16. Every matrix is rounded so that its outputs change least on inputs seen while sampling, and gets the fewest bits
with which whole samples stay within --budget: relative error against exact weights and the same noise, measured by sampling. The
variants that are there stay as they are, and stay the default.

On the CPU, --weights int8 times two 8-bit products and float32 on this machine for each shape of matrix, at the bundle's batch
sizes, and a matrix that no product makes faster keeps its type. Then it times the new variant against its source and records how
much of the time it takes, with the name of the processor. `--variant auto` goes by that, and never takes a slower one. The
variant also gets the students of the bundle in 8 bits, at the batch sizes where that makes a pass faster; their tokens keep the
budget, too.

--plan chooses how a variant is sampled: for autoregressive flows a decode plan, which decodes several tokens together; for
continuous flows the solver, its steps and their grid. The bundle stores the plan, and `--plan auto` takes it.
A decode plan is also judged as a distribution, by other samples: 4 for each of --images, at least 128, as far as 12 seconds allow.

Exit status: 0 done, 1 the budget cannot be kept, 2 wrong use.

Examples:
  starflow calibrate digits.bundle --weights int8
  starflow calibrate digits.bundle --weights int4 --budget 0.02 --report report.html
  starflow calibrate digits.bundle --weights fp8 --lowering portable --images 128 --json
  starflow calibrate digits.bundle --weights int8 --data train.npz
  starflow calibrate t2i.bundle --weights int8 --lowering cpu --captions-file captions.txt
  starflow calibrate t2i.bundle --weights int8 --lowering cpu --plain
  starflow calibrate digits.bundle --plan --budget 1e-3 --report plan.html
  starflow calibrate digits.bundle --plan --variant cpu-int8
  starflow calibrate digits.bundle --plan --variant auto
  starflow calibrate continuous.bundle --plan --budget 0.01 --plot plan.png
"""

import argparse
from pathlib import Path

from starflow.calibration.plans.command import configure_plan, run_plan
from starflow.calibration.weights.command import configure_weights, run_plain, run_weights
from starflow.runtime.commands.backend_arguments import add_backend_arguments
from starflow.runtime.plain.errors import UsageError

WEIGHT_DEFAULTS = {"budget": 0.005, "images": 64, "seed": 1}
PLAN_DEFAULTS = {"images": 8, "seed": 0}  # the budget depends on the variant


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`; the result is stored in it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", choices=("int8", "int4", "fp8"), help="add variants with weights of this type")
    what.add_argument(
        "--plan",
        action="store_true",
        help="choose a plan for a variant: chunks of tokens, or a solver and its steps for continuous flows",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="E",
        help="largest relative error of whole samples (default: 0.005 for weights; for a plan 0.001, or the error of the "
        "variant's weights if that is larger)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="number of samples to calibrate on, and of others to check on (default: 64 for weights, 8 for a plan)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="W",
        help="guidance weight (default: 1 for models trained for guidance, else 0)",
    )
    parser.add_argument("--seed", type=int, help="seed of noise and conditions (default: 1 for weights, 0 for a plan)")
    parser.add_argument(
        "--condition", type=Path, metavar="FILE.npy", help="condition tokens [N, tokens, width] to sample with"
    )
    parser.add_argument("--null-condition", type=Path, metavar="FILE.npy", help="null condition tokens [tokens, width]")
    parser.add_argument(
        "--captions-file", type=Path, metavar="FILE.txt", help="captions to sample with, one on each line"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report as one HTML file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    configure_weights(parser.add_argument_group("quantised weights"))
    configure_plan(parser.add_argument_group("plans"))
    add_backend_arguments(parser.add_argument_group("what runs the bundle"))


def run(arguments: argparse.Namespace) -> int:
    """Calibrate and print."""
    if arguments.shape and not arguments.plan:
        raise UsageError(
            "--shape: all shapes share their weights, which are calibrated at the first shape; leave it out"
        )
    if arguments.batch is not None and not arguments.plan:
        raise UsageError(
            "--batch: all batch sizes share their weights, which are calibrated at the largest size; leave it out"
        )
    if arguments.plain:
        return run_plain(arguments)
    for name, value in (PLAN_DEFAULTS if arguments.plan else WEIGHT_DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return run_plan(arguments) if arguments.plan else run_weights(arguments)
