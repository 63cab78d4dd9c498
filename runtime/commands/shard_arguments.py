"""The options of a set of images in shards, and what they do: one way for `starflow sample --shards` and `starflow generate`."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import backend_options, chosen_plan
from starflow.runtime.commands.condition_arguments import refuse_labels
from starflow.runtime.commands.sampling_arguments import given_guidance, given_images
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.input_files import load_array

if TYPE_CHECKING:
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.generation.job import Job
    from starflow.runtime.generation.shard_maker import MadeShard

    Run = Callable[[Job, Sequence[int]], Iterator[MadeShard]]


def add_shard_arguments(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Declare --shards, --shard, --format, --missing and --force."""
    parser.add_argument(
        "--shards", type=int, metavar="N", required=required, help="write the images as N files into the folder --out"
    )
    parser.add_argument(
        "--shard", type=int, metavar="I", help="make this shard alone, from 0 to N - 1 (default: all that are missing)"
    )
    parser.add_argument(
        "--format",
        metavar="{webdataset,parquet}",
        help="tar files for WebDataset (the default), or Parquet files",
    )
    parser.add_argument(
        "--missing", action="store_true", help="print the numbers of the missing shards, one a line, and make none"
    )
    parser.add_argument("--force", action="store_true", help="make shards again that are there")


def refuse_shard_arguments(arguments: argparse.Namespace) -> None:
    """UsageError if an option of shards is given without --shards."""
    for name in ("shard", "format", "missing", "force"):
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"--{name}: is for a set in shards; give --shards as well")


def run_shards(arguments: argparse.Namespace, run: "Run | None" = None) -> int:
    """Make the shards that are asked for and missing, or list them.

    Args:
        arguments: Of the command.
        run: What makes them; None for this process.
    """
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.commands.shape_argument import parse_shape
    from starflow.runtime.generation.set_record import asked_for, check_record
    from starflow.runtime.generation.split import shard_images

    bundle = Bundle.open(arguments.bundle).at_shape(parse_shape(arguments.shape)).at_batch(arguments.batch)
    job = _job(arguments, bundle)
    folder = job.folder
    check_record(job, asked_for(job, bundle))
    asked = list(range(folder.shards)) if arguments.shard is None else [arguments.shard]
    wanted = [shard for shard in asked if job.force or not folder.is_made(shard)]
    if arguments.missing:
        if arguments.json:
            print(json.dumps({"shards": folder.shards, "missing": wanted}))
        for shard in wanted if not arguments.json else ():
            print(shard)
        return 0
    kept = len(asked) - len(wanted)
    tell: Callable[[str], None] = (lambda line: None) if arguments.json else partial(print, file=sys.stdout, flush=True)
    if kept:
        are, them = ("shards are", "them") if kept > 1 else ("shard is", "it")
        tell(f"{folder.root}: {kept} {are} there and kept; --force makes {them} again")
    made = []
    for each in (run or partial(_here, quiet=arguments.json))(job, wanted) if wanted else ():
        made.append(each)
        speed = f"{each.images} images in {each.seconds:.2f} s" if each.written else "was there already"
        tell(f"{folder.path(each.shard)}: {speed}")
    missing = folder.missing()
    written = sorted(each.shard for each in made if each.written)
    if arguments.json:
        images = sum(len(shard_images(job.images.count, job.batch, folder.shards, shard)) for shard in written)
        print(json.dumps({"shards": folder.shards, "written": written, "missing": missing, "images": images}))
    else:
        left = f"{len(missing)} missing" if missing else "none missing"
        tell(f"{folder.root}: {len(written)} of {folder.shards} shards written, {left}")
    return 0


def _job(arguments: argparse.Namespace, bundle: "Bundle") -> "Job":
    """The job that the arguments describe, checked as far as can be without loading the bundle's weights."""
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.families import resolve_plan
    from starflow.runtime.generation.formats import shard_format
    from starflow.runtime.generation.image_set import ImageSet, set_condition
    from starflow.runtime.generation.job import Job
    from starflow.runtime.generation.shard_folder import ShardFolder
    from starflow.runtime.generation.split import check_shards
    from starflow.runtime.networks.denoising import choose_denoising
    from starflow.runtime.plain.atomic_write import check_output
    from starflow.runtime.plain.memory import check_images

    condition, _, count = given_images(arguments)
    manifest, shards = bundle.manifest, arguments.shards
    refuse_labels(arguments, manifest)
    check_shards(count, manifest.batch, shards)
    if arguments.shard is not None and not 0 <= arguments.shard < shards:
        raise UsageError(f"--shard {arguments.shard}: give a number from 0 to {shards - 1}")
    given = manifest.conditioning
    check_images(manifest.batch, math.prod(manifest.model.data_shape), given.tokens * given.width)
    format_name = arguments.format or "webdataset"
    shard_format(format_name)
    folder = ShardFolder(arguments.out, format_name, shards)
    refuse_own_files(bundle, folder.record)
    if not arguments.missing:
        check_output(folder.record)
    null = None if arguments.null_condition is None else load_array(arguments.null_condition)
    images = ImageSet(
        count,
        arguments.seed,
        given_guidance(arguments),
        arguments.temperature,
        set_condition(given, condition),
        null,
        choose_denoising(manifest, arguments.denoise),
        arguments.denoising_rate,
    )
    plan = resolve_plan(manifest, chosen_plan(arguments)) or "auto"
    options = backend_options(arguments) | {"batch": manifest.batch, "plan": plan, "variant": arguments.variant}
    return Job(arguments.bundle, images, folder, options, arguments.force)


def _here(job: "Job", shards: Sequence[int], *, quiet: bool) -> Iterator["MadeShard"]:
    """Make shards in this process."""
    from starflow.runtime.generation.shard_maker import ShardMaker
    from starflow.runtime.plain.progress import progress_bar

    with ShardMaker(job) as maker:
        for shard in shards:
            with progress_bar(f"shard {shard} of {job.folder.shards}", enabled=not quiet) as bar:
                made = maker.make(shard, bar)
            yield made
