"""`starflow serve`: loads the bundles, listens, and finishes what it took when it is told to stop."""

import json
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvicorn

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.serve.http.app import create_app
from starflow.runtime.serve.http.metrics import Metrics
from starflow.runtime.serve.model_name import model_name
from starflow.runtime.serve.served_model import ServedModel, Serving

MOST_CONNECTIONS = 1000  # beyond them clients get 503 at once
MOST_HEADER = 32 << 10  # bytes


@dataclass(frozen=True)
class Address:
    """Where to listen, and who may ask; see `create_app` for the key."""

    host: str
    port: int
    key: str | None
    access_log: bool


def serve(bundles: Sequence[Path], serving: Serving, address: Address, *, grace: float, as_json: bool) -> int:
    """Serve until SIGINT or SIGTERM, then finish what was taken within `grace` seconds.

    Raises:
        UsageError: two bundles have one name, or the address cannot be had.
        BundleError, BackendError: a bundle cannot be opened.
    """
    models: dict[str, ServedModel] = {}
    metrics = Metrics(lambda: models)

    deadline = 0.0

    def close(model: ServedModel) -> None:
        model.close(max(0.0, deadline - time.monotonic()))

    with ExitStack() as stack:
        listening = stack.enter_context(_listen(address))
        for path in bundles:
            name = model_name(path)
            if name in models:
                raise UsageError(f"{path}: another bundle is called {name} as well; rename one of the folders")
            models[name] = ServedModel(name, Bundle.open(path), serving, metrics.on_batch)
            stack.callback(close, models[name])
        app = create_app(models, metrics, version("starflow-compiler"), address.key)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=address.access_log,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=MOST_HEADER,
            timeout_graceful_shutdown=max(1, round(grace)),
            http="h11",
            ws="none",
            lifespan="off",
        )
        _announce(models, listening, as_json)
        with suppress(KeyboardInterrupt):  # uvicorn passes on the signal that stopped it, after it has finished
            uvicorn.Server(config).run(sockets=[listening])
        deadline = time.monotonic() + grace
    return 0


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
        listening.listen(MOST_CONNECTIONS)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"{address.host} port {address.port}: cannot be listened on ({error.strerror}); choose others with --host and --port"
        ) from None
    return listening


def _announce(models: dict[str, ServedModel], listening: socket.socket, as_json: bool) -> None:
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if as_json:
        print(json.dumps({"url": url, "models": list(models)}), flush=True)
    else:
        print(f"{url} serves {', '.join(models)}; {url}/docs says how to ask. Ctrl-C stops it.", flush=True)
