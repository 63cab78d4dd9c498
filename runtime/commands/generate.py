"""Generate a large set of images in shards.

Each shard is a tar file for WebDataset, or a Parquet file, and appears whole or not at all. Image g depends on the seed and on g
alone, so the set is the same, byte by byte, whoever makes which shard. The same command again makes what is missing. With --ray
the shards are made on a cluster of Ray. `starflow sample --shards` does the same on this machine.

Examples:
  starflow generate digits.bundle --labels 0-9 --count 100000 --guidance 2 --shards 100 --out digits/
  starflow generate t2i.bundle --captions-file captions.txt --guidance 3 --shards 500 --format parquet --out set/
  starflow generate t2i.bundle --captions-file captions.txt --guidance 3 --shards 500 --out set/ --ray 10.0.0.1:6379
  starflow generate digits.bundle --labels 0-9 --count 100000 --guidance 2 --shards 100 --out digits/ --missing
"""

import argparse
from functools import partial
from pathlib import Path

from starflow.runtime.commands.backend_arguments import add_backend_arguments, add_plan_arguments, add_variant_argument
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.commands.sampling_arguments import add_sampling_arguments
from starflow.runtime.commands.shard_arguments import add_shard_arguments, run_shards
from starflow.runtime.plain.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    add_sampling_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="folder of the shards")
    add_shard_arguments(output, required=True)
    output.add_argument("--json", action="store_true", help="print a summary as JSON")
    cluster = parser.add_argument_group("where it runs")
    cluster.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on the cluster of Ray at this address; without one, on the cluster that RAY_ADDRESS names or that runs on "
        "this machine, or else on this machine alone",
    )
    cluster.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help="number of shards that the cluster makes at the same time (default: one for each GPU, or for each node without)",
    )
    running = parser.add_argument_group("how it runs")
    add_variant_argument(running)
    add_backend_arguments(running)
    add_plan_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate what is missing; 0 if it was written."""
    if arguments.actors is not None and (arguments.ray is None or arguments.actors < 1):
        fault = "give --ray as well" if arguments.ray is None else "give a number of at least 1"
        raise UsageError(f"--actors {arguments.actors}: {fault}")
    if arguments.ray is None or arguments.missing:
        return run_shards(arguments)
    from starflow.runtime.generation.on_ray import make_on_ray

    return run_shards(arguments, partial(make_on_ray, address=arguments.ray or None, actors=arguments.actors))
