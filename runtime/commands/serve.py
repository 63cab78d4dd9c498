"""Serve bundles over HTTP.

Clients of OpenAI's images endpoint (/v1/images/generations) and of the Open Inference Protocol (/v2/models/NAME/infer), a page
to try a model in the browser (/), metrics for Prometheus (/metrics) and a description of everything (/docs). Requests that
wait are merged into batches; no image changes by it.

Examples:
  starflow serve digits.bundle
  starflow serve digits.bundle emoji.bundle --port 9000 --samplers 2
  starflow serve t2i.bundle --host 0.0.0.0 --key-file key.txt
"""

import argparse
import logging
import os
from pathlib import Path

from starflow.runtime.commands.backend_arguments import (
    add_backend_arguments,
    add_plan_arguments,
    add_variant_argument,
    backend_options,
    chosen_plan,
)
from starflow.runtime.commands.bundle_argument import HELP
from starflow.runtime.plain.errors import UsageError

KEY_VARIABLE = "STARFLOW_KEY"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="bundle", help=HELP)
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    network.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: 8000; 0 for a free one)")
    network.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file with the key that clients must send as a bearer token (default: the variable {KEY_VARIABLE}, if it is set)",
    )
    network.add_argument("--access-log", action="store_true", help="print a line for each request")
    queue = parser.add_argument_group("queue")
    queue.add_argument(
        "--samplers", type=int, default=1, metavar="N", help="batches that run at the same time (default: 1)"
    )
    queue.add_argument(
        "--max-waiting",
        type=int,
        default=64,
        metavar="N",
        help="images that may wait; requests beyond are told to come back (default: 64)",
    )
    queue.add_argument(
        "--patience",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long an image waits for others to fill its batch, in ms (default: 5)",
    )
    queue.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="S",
        help="after Ctrl-C or SIGTERM: seconds in which requests that were taken are finished (default: 30)",
    )
    running = parser.add_argument_group("how it runs")
    add_variant_argument(running)
    add_backend_arguments(running, sizes=False)
    add_plan_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the address and the models as JSON when it listens")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from starflow.runtime.serve.http.server import Address, serve
    from starflow.runtime.serve.served_model import Serving

    for name, least in (("samplers", 1), ("max_waiting", 1), ("patience", 0), ("grace", 0), ("port", 0)):
        value = getattr(arguments, name)
        if not least <= value < 1 << 16:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {value}: give a number from {least} to {(1 << 16) - 1}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options = {name: value for name, value in backend_options(arguments).items() if name not in ("shape", "batch")}
    serving = Serving(
        arguments.samplers,
        arguments.max_waiting,
        arguments.patience / 1000,
        {"variant": arguments.variant, "plan": chosen_plan(arguments), **options},
    )
    address = Address(arguments.host, arguments.port, _key(arguments.key_file), arguments.access_log)
    return serve(arguments.bundles, serving, address, grace=arguments.grace, as_json=arguments.json)


def _key(file: Path | None) -> str | None:
    from starflow.runtime.plain.regular_file import read_text

    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = read_text(file, 4096).strip()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    if not key.isascii() or not key.isprintable() or not key or " " in key:
        raise UsageError(f"{file}: holds no key; write one word of printable ASCII characters into it")
    return key
