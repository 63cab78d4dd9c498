"""Upload a bundle to the Hugging Face Hub, with a model card.

The card shows samples, says how to use the bundle, and holds the figures of its manifest. Anyone who may read the model then gives
its name in place of a folder: `starflow sample org/name`.

Examples:
  starflow push digits.bundle org/digits --labels 0-9 --guidance 2 --license apache-2.0
  starflow push emoji.bundle org/emoji --variant cpu-int8 portable-fp16 --captions "red apple" "rocket" --private
  starflow push digits.bundle org/digits --dry-run
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.commands.bundle_argument import add_kept_variants
from starflow.runtime.commands.condition_arguments import add_condition_arguments, given_condition, refuse_labels

if TYPE_CHECKING:
    from starflow.runtime.bundle.bundle import Bundle

MOST_PICTURES = 64
COUNT = 8  # pictures where no condition is given


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `starflow export`")
    parser.add_argument("repository", help="org/name on the Hub; it is made if there is none")
    add_kept_variants(parser)
    hub = parser.add_argument_group("the Hub")
    hub.add_argument("--branch", default="main", help="branch to commit to (default: main)")
    hub.add_argument("--message", metavar="TEXT", help="message of the commit (default: says what was pushed)")
    hub.add_argument("--private", action="store_true", help="make a new repository private")
    hub.add_argument("--dry-run", action="store_true", help="print the card and the files, and push nothing")
    card = parser.add_argument_group("the card")
    card.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the Hub spells it, such as apache-2.0"
    )
    add_condition_arguments(card)
    card.add_argument(
        "--guidance", type=float, default=0.0, metavar="W", help="guidance weight of the samples (default: 0)"
    )
    card.add_argument("--seed", type=int, default=0, help="random seed of the samples (default: 0)")
    parser.add_argument("--json", action="store_true", help="print what was pushed as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Push; 0 if the Hub has taken it."""
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.selection import select
    from starflow.runtime.hub.model_card import PICTURE, CardFacts, model_card
    from starflow.runtime.hub.upload import Destination, check_hub, upload
    from starflow.runtime.reports.tables import mebibytes

    to = Destination(arguments.repository, arguments.branch, arguments.private)
    check_hub()
    bundle = Bundle.open(arguments.bundle)
    selection = select(bundle, arguments.variant)
    pushed = bundle.with_manifest(selection.manifest)
    picture, words = _picture(pushed, arguments)
    card = model_card(pushed, CardFacts(to.repository, arguments.license, words))
    beside = {"README.md": card.encode()} | ({PICTURE: picture} if picture else {})
    files = [*beside, *selection.texts, *(file.path for file in selection.files)]
    if arguments.dry_run:
        print(json.dumps({"card": card, "files": files, "bytes": selection.bytes}) if arguments.json else card)
        if not arguments.json:
            print(f"{len(files)} files, {mebibytes(selection.bytes)}; nothing was pushed:", *files, sep="\n  ")
        return 0
    names = ", ".join(variant.name for variant in selection.manifest.variants)
    address = upload(bundle, selection, beside, to, arguments.message or f"starflow bundle: {names}")
    if arguments.json:
        print(json.dumps({"repository": to.repository, "commit": address, "files": files, "bytes": selection.bytes}))
    else:
        print(f"{address}: {names}; {mebibytes(selection.bytes)}")
        if not arguments.license:
            print("the card names no licence; push again with --license")
    return 0


def _picture(bundle: "Bundle", arguments: argparse.Namespace) -> tuple[bytes | None, str | None]:
    """A PNG of samples, and how they were made; neither for a bundle that makes no images."""
    import io

    from starflow.runtime.plain.errors import UsageError
    from starflow.runtime.plain.images import grid, picture
    from starflow.runtime.sampler import Sampler

    condition, given = given_condition(arguments)
    refuse_labels(arguments, bundle.manifest)
    if bundle.manifest.output != "images":
        return None, None
    if given > MOST_PICTURES:
        raise UsageError(f"{given} samples for a card: give conditions for at most {MOST_PICTURES}")
    conditioning = bundle.manifest.conditioning
    if condition is None and conditioning.kind.startswith("class"):
        condition = list(range(min(conditioning.num_classes, COUNT)))
        given = len(condition)
    with Sampler.open(bundle) as sampler:
        images = sampler.sample(condition, count=given or COUNT, guidance=arguments.guidance, seed=arguments.seed)
        made = f"{_named(condition)}guidance {arguments.guidance:g}, seed {arguments.seed}, {sampler.variant.name}"
    file = io.BytesIO()
    picture(grid(images, None)).save(file, "PNG")
    return file.getvalue(), made


def _named(condition: Any) -> str:
    """The condition of the samples in words."""
    if isinstance(condition, list):
        return f"{'; '.join(map(str, condition))}: "
    return ""
