"""The service of `examples/service` over a real socket."""

import importlib.util
import io
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from starflow.runtime import Sampler


def test_it_answers_with_the_samplers_image(
    repository: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLE", str(tiny_bundle))
    found = importlib.util.spec_from_file_location("service_example", repository / "examples/service/app.py")
    assert found and found.loader
    service = importlib.util.module_from_spec(found)
    found.loader.exec_module(service)
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/image"
        with urllib.request.urlopen(f"{url}?label=3&seed=7&guidance=1.5", timeout=60) as answer:
            pixels = np.asarray(Image.open(io.BytesIO(answer.read())))
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{url}?label=11", timeout=60)
    finally:
        server.should_exit = True
        thread.join()
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        assert np.array_equal(pixels, sampler.sample([3], seed=7, guidance=1.5)[0, :, :, 0])
