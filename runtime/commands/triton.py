"""Write a model repository for NVIDIA's Triton inference server.

It holds a model that answers with images, which merges requests into batches, and one that streams previews. Inputs and outputs
have the names that `starflow serve` gives them. Each model holds a copy of the bundle, with the variant that it runs, so the folder
is all that a server needs.

Examples:
  starflow triton digits.bundle -o repository
  starflow triton t2i.bundle -o repository --kind gpu --name fruit --link
  tritonserver --model-repository=repository
"""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from starflow.runtime.commands.backend_arguments import (
    add_backend_arguments,
    add_plan_arguments,
    add_variant_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.commands.bundle_argument import add_bundle_argument
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from starflow.runtime.serve.triton.config import Kind

MOST_INSTANCES = 64
MOST_PATIENCE = 60_000  # ms
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_argument(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="REPOSITORY", help="folder to write; it must not exist"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the folder if it is a repository that this command wrote"
    )
    parser.add_argument(
        "--link",
        action="store_true",
        help="make hard links to the files of the bundle, which take no space, instead of copies",
    )
    parser.add_argument("--json", action="store_true", help="print the names of the models as JSON")
    hosting = parser.add_argument_group("how Triton runs it")
    hosting.add_argument(
        "--name", help="name of the model (default: that of the bundle); the one with previews is called NAME-previews"
    )
    hosting.add_argument(
        "--kind",
        metavar="{cpu,gpu}",
        help="what instances run on (default: gpu if --backend or --provider needs one, else cpu)",
    )
    hosting.add_argument(
        "--count", type=int, default=1, metavar="N", help="instances of each model, each a process (default: 1)"
    )
    hosting.add_argument(
        "--patience",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a request waits for others to fill its batch, in ms (default: 5)",
    )
    running = parser.add_argument_group("how the model runs")
    add_variant_argument(running)
    add_backend_arguments(running, batch="the smallest that holds the images")
    add_plan_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the repository."""
    from starflow.runtime.backends.choice import variant_for
    from starflow.runtime.bundle.build_record import read_builds
    from starflow.runtime.bundle.bundle import Bundle
    from starflow.runtime.bundle.own_files import refuse_own_files
    from starflow.runtime.families import resolve_plan
    from starflow.runtime.plain.progress import progress_bar
    from starflow.runtime.plans.decode_plan import Students
    from starflow.runtime.serve.model_name import model_name
    from starflow.runtime.serve.triton.config import Hosting
    from starflow.runtime.serve.triton.repository import write_repository
    from starflow.runtime.serve.triton.settings import PLAN, Settings

    name = model_name(arguments.bundle) if arguments.name is None else arguments.name
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: give a name of letters, digits and . _ -")
    if not 1 <= arguments.count <= MOST_INSTANCES:
        raise UsageError(f"--count {arguments.count}: give a number from 1 to {MOST_INSTANCES}")
    if not 0 <= arguments.patience <= MOST_PATIENCE:
        raise UsageError(f"--patience {arguments.patience:g}: give a number from 0 to {MOST_PATIENCE}")
    plan, options = chosen_plan(arguments), backend_options(arguments)
    bundle = Bundle.open(arguments.bundle)
    refuse_own_files(bundle, arguments.out)
    chosen = bundle.at_shape(options["shape"]).at_batch(options["batch"])
    resolved = resolve_plan(chosen.manifest, plan)
    own_plan = None if plan in ("auto", "sequential") or isinstance(resolved, Students) else resolved
    kind, backend, provider = _placed(arguments, has_engines=any(read_builds(chosen)))
    if backend == "onnxruntime":
        variant = variant_for(chosen, arguments.variant, provider)
    else:
        variant = chosen.variant(arguments.variant, "portable")
        if variant.lowering != "portable":
            raise UsageError(f"--variant {variant.name}: engines are built from portable variants; name one")
    settings = Settings.of_options(
        {
            **options,
            "backend": backend,
            "provider": provider,
            # Which variant TensorRT runs depends on the GPU, unless it is named.
            "variant": arguments.variant if backend == "tensorrt" else variant.name,
            "plan": PLAN if own_plan else plan,
        }
    )
    hosting = Hosting(kind, arguments.count, arguments.patience / 1000)
    written = {"plan": own_plan, "link": arguments.link, "replace": arguments.force}
    with progress_bar("copying", enabled=not arguments.json) as bar:
        models = write_repository(arguments.out, name, bundle, hosting, settings, report=bar, **written)
    batch = chosen.manifest.batch
    if arguments.json:
        print(json.dumps({"repository": str(arguments.out), "models": models, "max_batch_size": batch}))
    else:
        print(
            f"{arguments.out}: {' and '.join(models)}, batches of up to {batch}, on the {kind.upper()}; "
            f"start it with tritonserver --model-repository={arguments.out}"
        )
    return 0


def _placed(arguments: argparse.Namespace, *, has_engines: bool) -> "tuple[Kind, str, str]":
    """The kind of instances, and the backend and the provider, by name: what runs there must not depend on what it meets.

    Raises:
        UsageError: there is no such kind, or it excludes the backend or the provider.
    """
    kind, backend, provider = arguments.kind, arguments.backend, arguments.provider
    needs_gpu = backend == "tensorrt" or provider != "cpu"
    if kind not in ("cpu", "gpu", None):
        raise UsageError(f"--kind {kind}: expected cpu or gpu")
    if kind == "cpu" and needs_gpu:
        chosen = f"--backend {backend}" if backend == "tensorrt" else f"--provider {provider}"
        raise UsageError(f"--kind cpu and {chosen} exclude each other; leave one out")
    if kind != "gpu" and not needs_gpu:
        return "cpu", "onnxruntime" if backend == "auto" else backend, provider
    if backend == "auto":
        backend = "tensorrt" if has_engines and provider == "cpu" else "onnxruntime"
    if backend == "onnxruntime" and provider == "cpu":
        provider = "cuda"
    return "gpu", backend, provider
