"""A server in this process, on a port of its own."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from starflow.runtime import Bundle
from starflow.runtime.serve.http.app import create_app
from starflow.runtime.serve.http.metrics import Metrics
from starflow.runtime.serve.served_model import ServedModel, Serving


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def sentence(self) -> str:
        """The message of an error, in either form."""
        error = self.json["error"]
        return error["message"] if isinstance(error, dict) else error


@dataclass(frozen=True)
class Client:
    """Talks to a server; a connection for each request."""

    port: int
    models: Mapping[str, ServedModel]

    def ask(self, path: str, content: object = None, method: str | None = None, **headers: str) -> Answer:
        """GET without content, POST with it: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if content is None else "POST"), path, body, names)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    def images(self, **asked: Any) -> Answer:
        return self.ask("/v1/images/generations", asked)

    def infer(self, model: str, *inputs: dict[str, Any], **fields: Any) -> Answer:
        return self.ask(f"/v2/models/{model}/infer", {"inputs": list(inputs), **fields})


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


Start = Callable[..., Any]


@contextmanager
def running(bundles: Mapping[str, Path], serving: Serving, key: str | None = None) -> Iterator[Client]:
    """A server over some bundles."""
    models: dict[str, ServedModel] = {}
    metrics = Metrics(lambda: models)
    for name, path in bundles.items():
        models[name] = ServedModel(name, Bundle.open(path), serving, metrics.on_batch)
    config = uvicorn.Config(
        create_app(models, metrics, "0", key), port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1], models)
    finally:
        server.should_exit = True
        thread.join()
        for model in models.values():
            model.close(0)


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, captioned_bundle: Path) -> Iterator[Client]:
    """A server over a model of classes and one of captions."""
    serving = Serving(patience=0.05, options={"threads": 1})
    with running({"tiny": tiny_bundle, "captioned": captioned_bundle}, serving) as made:
        yield made
