"""The HTTP server over real sockets: its pixels are the sampler's, and nothing a client sends ends in a traceback."""

import base64
import io
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Bundle, Sampler
from starflow.runtime.bundle.bytes_read import step_bytes
from starflow.runtime.serve.http import body
from starflow.runtime.serve.served_model import Serving
from tests.runtime.serve.conftest import Client, running, tensor


def pixels(text: str) -> NDArray[np.uint8]:
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return image.reshape(*image.shape[:2], -1)


def sampled(path: Path, *arguments: Any, **options: Any) -> NDArray[np.uint8]:
    with Sampler.open(path, threads=1) as sampler:
        return sampler.sample(*arguments, **options)


# OpenAI's endpoint


def test_images_are_those_of_the_sampler(client: Client, tiny_bundle: Path) -> None:
    found = client.images(model="tiny", prompt="3", n=3, seed=7, guidance=2.0, size="8x8").json
    expected = sampled(tiny_bundle, [3, 3, 3], seed=[7, 8, 9], guidance=2.0)
    assert np.array_equal(np.stack([pixels(image["b64_json"]) for image in found["data"]]), expected)
    assert [image["seed"] for image in found["data"]] == [7, 8, 9] and found["size"] == "8x8"
    plain = client.images(prompt="", seed=1).json["data"]  # the first model; no class is the null class
    assert np.array_equal(pixels(plain[0]["b64_json"]), sampled(tiny_bundle, seed=[1])[0])


def test_a_seed_that_was_not_given_is_told(client: Client, tiny_bundle: Path) -> None:
    first, second = (client.images(model="tiny", prompt="3").json["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert np.array_equal(pixels(first["b64_json"]), sampled(tiny_bundle, [3], seed=[first["seed"]])[0])


def test_a_stream_shows_previews_and_ends_with_the_images(client: Client, tiny_bundle: Path) -> None:
    answer = client.images(model="tiny", prompt="4", n=2, seed=7, stream=True, partial_images=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(part.partition("data: ")[2]) for part in answer.content.decode().split("\n\n")[:-1]]
    kinds = [event["type"] for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"] * 2
    done = {event["index"]: pixels(event["b64_json"]) for event in events[2:]}
    assert np.array_equal(np.stack([done[0], done[1]]), sampled(tiny_bundle, [4, 4], seed=[7, 8]))
    assert pixels(events[0]["b64_json"]).shape == (8, 8, 1)


# The Open Inference Protocol


def test_tensors_in_json(client: Client, tiny_bundle: Path) -> None:
    inputs = (
        tensor("label", "INT64", [3, 4]),
        tensor("seed", "INT64", [5, 9]),
        tensor("guidance", "FP32", [2.0, 0.0]),
        tensor("temperature", "FP32", [0.5]),
    )
    found = client.infer("tiny", *inputs, id="mine").json
    (image,) = found["outputs"]
    assert (found["id"], image["name"], image["datatype"], image["shape"]) == ("mine", "image", "UINT8", [2, 8, 8, 1])
    expected = sampled(tiny_bundle, [3, 4], seed=[5, 9], guidance=[2.0, 0.0], temperature=0.5)
    assert np.array_equal(np.reshape(image["data"], image["shape"]), expected)


def test_columns_as_triton_wants_them(client: Client, tiny_bundle: Path) -> None:
    """What `starflow triton` takes, this server takes as well."""
    columns = (("label", "INT64", [3, 4]), ("seed", "INT64", [5, 9]), ("temperature", "FP32", [0.5, 0.5]))
    found = client.infer("tiny", *(tensor(name, kind, data, [2, 1]) for name, kind, data in columns)).json
    (image,) = found["outputs"]
    expected = sampled(tiny_bundle, [3, 4], seed=[5, 9], temperature=0.5)
    assert np.array_equal(np.reshape(image["data"], image["shape"]), expected)


def test_tensors_in_bytes(client: Client, captioned_bundle: Path) -> None:
    captions = ["a cat", "zwei Hunde ☃"]
    texts = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in captions)
    seeds = np.array([3, 4], "<i8").tobytes()
    described = [
        {"name": "caption", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(texts)}},
        {"name": "seed", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": len(seeds)}},
        tensor("guidance", "FP32", [1.5]),
    ]
    asked = {"inputs": described, "outputs": [{"name": "latent", "parameters": {"binary_data": True}}]}
    head = json.dumps(asked).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    answer = client.ask("/v2/models/captioned/infer", head + texts + seeds, **length)
    size = int(answer.headers["inference-header-content-length"])
    (latent,) = json.loads(answer.content[:size])["outputs"]
    found = np.frombuffer(answer.content[size:], "<f4").reshape(latent["shape"])
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        expected = sampler.generate(sampler.noise(2, [3, 4]), captions, guidance=1.5)
    assert np.array_equal(found, expected) and latent["parameters"] == {"binary_data_size": found.nbytes}
    cut = client.ask("/v2/models/captioned/infer", (head + texts + seeds)[:-1], **length)
    assert cut.status == 400 and "binary_data_size 16, but 15 bytes follow" in cut.sentence


def test_what_a_model_takes_and_makes(client: Client) -> None:
    tiny, captioned = (client.ask(f"/v2/models/{name}").json for name in ("tiny", "captioned"))
    assert tiny["inputs"][0] == {"name": "label", "datatype": "INT64", "shape": [-1]}
    assert tiny["outputs"][0] == {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}
    assert [each["name"] for each in captioned["inputs"]][:2] == ["caption", "condition"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v1/models", "/docs"):
        assert client.ask(path).status == 200
    assert "/v2/models/{name}/infer" in client.ask("/openapi.json").json["paths"]


# What is wrong

WRONG: dict[str, tuple[int, str, Any]] = {
    "a label out of range": (400, "label 10 is not a class", {"prompt": "10"}),
    "no class": (400, "label 'cat' is not a class", {"prompt": "cat"}),
    "no prompt": (400, "prompt: is missing", {"n": 1}),
    "an unknown field": (400, "unknown field guidence; did you mean guidance?", {"prompt": "1", "guidence": 2}),
    "an unknown model": (404, "model 'large': this server has tiny, captioned", {"prompt": "1", "model": "large"}),
    "another size": (400, "size '1024x1024': tiny makes 8x8", {"prompt": "1", "size": "1024x1024"}),
    "a billion images": (400, "n: found 1000000000, expected 64 or less", {"prompt": "1", "n": 10**9}),
    "a long prompt": (400, "expected text of 4096 characters or less", {"prompt": "x" * 5000}),
    "a prompt of a megabyte": (413, "larger than 65,536 bytes", {"prompt": "x" * 10**6}),
    "a number as text": (400, "n: found '2', expected a whole number", {"prompt": "1", "n": "2"}),
    "a URL as the answer": (400, "response_format: found 'url'", {"prompt": "1", "response_format": "url"}),
    "NaN": (400, "the request is not JSON: it holds NaN", b'{"prompt": "1", "guidance": NaN}'),
    "a negative guidance": (400, "guidance: found -1", {"prompt": "1", "guidance": -1}),
    "a huge guidance": (400, "guidance 1e+30: give at most 1000", {"prompt": "1", "guidance": 1e30}),
    "a negative seed": (400, "seed: found -1", {"prompt": "1", "seed": -1}),
    "no JSON": (400, "the request is not JSON", b"prompt=1"),
    "no UTF-8": (400, "the request is not UTF-8", b'{"prompt": "\xff"}'),
    "a list": (400, "not an object", b"[1]"),
    "nothing": (400, "the request is not JSON", b""),
    "deep nesting": (400, "nested too deeply", b'{"prompt": ' + b"[" * 30_000),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_for_images(client: Client, case: str, caplog: pytest.LogCaptureFixture) -> None:
    status, message, content = WRONG[case]
    answer = client.ask("/v1/images/generations", content)
    assert answer.status == status and message in answer.sentence
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


SEED = tensor("seed", "INT64", [1])
WRONG_TENSORS: dict[str, tuple[int, str, list[dict[str, Any]]]] = {
    "another shape": (400, "label has shape [2, 2]", [tensor("label", "INT64", [1, 2, 3, 4], [2, 2])]),
    "too few values": (400, "1 values do not fill the shape [2]", [tensor("label", "INT64", [1], [2])]),
    "a negative shape": (400, "shape [-1] is not one", [tensor("label", "INT64", [1], [-1])]),
    "a terabyte": (400, "is not one this server takes", [tensor("label", "INT64", [1], [2**40])]),
    "labels and seeds": (
        400,
        "input seed has shape [2]",
        [tensor("label", "INT64", [1, 2, 3]), tensor("seed", "INT64", [1, 2])],
    ),
    "another type": (400, "label 'x' is not a class", [tensor("label", "BYTES", ["x"])]),
    "fractions": (400, "labels have shape [1] and type float", [tensor("label", "FP32", [1.5])]),
    "no such type": (400, "datatype 'INT7' is none of", [tensor("label", "INT7", [1])]),
    "text as a number": (400, "its data are not all INT64", [tensor("label", "INT64", ["1"])]),
    "a number beyond the type": (400, "too large for UINT8", [tensor("label", "UINT8", [256])]),
    "an unknown input": (400, "input 'prompt': tiny takes label, seed", [tensor("prompt", "BYTES", ["x"])]),
    "an input twice": (400, "input seed is given twice", [SEED, SEED]),
    "negative seeds": (400, "seed -1 is not a whole number from 0 to 2^64 - 1", [tensor("seed", "INT64", [-1])]),
    "bytes that are missing": (
        400,
        "but 0 bytes follow",
        [{**SEED, "data": None, "parameters": {"binary_data_size": 8}}],
    ),
    "no data": (400, "has neither data nor", [{"name": "seed", "datatype": "INT64", "shape": [1]}]),
    "half a million images": (
        400,
        "500000 images in one request; ask for at most 64",
        [tensor("seed", "INT64", [1]), tensor("guidance", "FP32", [0] * 500_000)],
    ),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors(client: Client, case: str) -> None:
    status, message, inputs = WRONG_TENSORS[case]
    answer = client.infer("tiny", *inputs)
    assert (answer.status, message in answer.sentence) == (status, True), answer.sentence


def test_other_wrong_requests(client: Client) -> None:
    infer = "/v2/models/tiny/infer"
    for status, message, answer in (
        (404, "GET /v3: Not Found", client.ask("/v3")),
        (405, "Method Not Allowed", client.ask(infer)),
        (404, "model 'x'", client.ask("/v2/models/x")),
        (404, "model 'x'", client.infer("x", SEED)),
        (415, "compressed requests", client.ask(infer, b"x", Content_Encoding="gzip")),
        (400, "was it cut off?", client.ask(infer, b"{}", Inference_Header_Content_Length="900")),
        (400, "output 'video'", client.infer("tiny", SEED, outputs=[{"name": "video"}])),
        (400, "unknown field inputz", client.ask(infer, {"inputs": [], "inputz": []})),
    ):
        assert (answer.status, message in answer.sentence) == (status, True), answer.sentence
    exclusive = (tensor("caption", "BYTES", ["a"]), tensor("condition", "FP32", [0.0] * 256, [1, 8, 32]))
    assert "exclude each other" in client.infer("captioned", *exclusive).sentence


def test_large_tensors_come_as_bytes(client: Client) -> None:
    answer = client.infer("tiny", tensor("guidance", "FP32", [0] * 10**6))
    assert answer.status == 413 and "the JSON is larger than 2,097,152 bytes; send large tensors as" in answer.sentence


def test_a_body_that_does_not_come_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert b" 408 " in connection.recv(4096)


# Who may ask, and how much


def test_a_key_is_asked_for(tiny_bundle: Path) -> None:
    with running({"tiny": tiny_bundle}, Serving(options={"threads": 1}), key="s3cret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            answer = client.ask("/v1/models", **headers)
            assert answer.status == 401 and "Bearer KEY" in answer.sentence
        assert client.ask("/v1/models", Authorization="Bearer s3cret").status == 200
        assert client.ask("/v2/health/live").status == client.ask("/").status == 200
        assert client.ask("/metrics").status == 401


def test_a_full_queue_sheds_and_recovers(tiny_bundle: Path) -> None:
    serving = Serving(max_waiting=2, patience=30.0, options={"threads": 1})
    with running({"tiny": tiny_bundle}, serving) as client:
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(client.images(prompt="1", seed=1)))
        waiting.start()
        while not client.models["tiny"].waiting:
            time.sleep(0.01)
        full = client.images(prompt="1", n=2)
        assert full.status == 429 and int(full.headers["retry-after"]) >= 1
        assert full.json["error"]["type"] == "rate_limit_error"
        assert client.images(prompt="2").status == 200  # fills the batch
        waiting.join()
    assert answers[0].status == 200


def test_a_full_queue_refuses_before_it_reads(tiny_bundle: Path, captioned_bundle: Path) -> None:
    serving = Serving(max_waiting=1, patience=30.0, options={"threads": 1})
    with running({"tiny": tiny_bundle, "captioned": captioned_bundle}, serving) as client:
        infer = [f"/v2/models/{each}/infer" for each in ("tiny", "tiny/versions/1", "captioned")]

        def asked() -> list[int]:
            """The answers to requests that are wrong as soon as they are read."""
            return [client.ask(path, b"no JSON").status for path in ("/v1/images/generations", *infer)]

        assert asked() == [400, 400, 400, 400]
        with waiting_request(client, "tiny"):
            assert asked() == [400, 429, 429, 400]  # the first may be for the other model
            with waiting_request(client, "captioned"):
                assert asked() == [429, 429, 429, 429]
                assert client.ask("/v1/models").status == client.ask("/v2/models/tiny").status == 200
                assert client.ask("/v2/models/none/infer", b"no JSON").status == 429
                with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
                    connection.sendall(f"POST {infer[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
                    assert b" 429 " in connection.recv(4096)
        assert asked() == [400, 400, 400, 400]
        told = client.ask("/metrics").content.decode()
        assert 'starflow_requests_total{path="/v2/models/{name}/infer",status="429"} 5.0' in told


def test_a_size_that_is_not_loaded_has_room(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    export_checkpoint(tiny_checkpoint, path, ExportOptions(shape=(8, 8), other_shapes=[(4, 12)], batch=2))
    serving = Serving(max_waiting=1, patience=30.0, options={"threads": 1})
    with running({"shaped": path}, serving) as client, waiting_request(client, "shaped"):
        assert client.images(prompt="1", size="8x8").status == 429
        with waiting_request(client, "shaped", size="12x4"):
            assert client.ask("/v1/images/generations", b"no JSON").status == 429
        assert client.ask("/v1/images/generations", b"no JSON").status == 400


@contextmanager
def waiting_request(client: Client, model: str, **asked: Any) -> Iterator[None]:
    """A request for an image that waits in the queue of a model meanwhile."""
    content, before = json.dumps({"model": model, "prompt": "1", **asked}).encode(), client.models[model].waiting
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(head.encode() + content)
        until(lambda: client.models[model].waiting == before + 1)
        yield
    until(lambda: client.models[model].waiting == before)


def test_a_client_that_goes_away_frees_its_place(tiny_bundle: Path) -> None:
    serving = Serving(max_waiting=1, patience=30.0, options={"threads": 1})
    with running({"tiny": tiny_bundle}, serving) as client:
        for stream in (False, True):
            with waiting_request(client, "tiny", stream=stream):
                assert client.models["tiny"].waiting == 1
            assert client.models["tiny"].waiting == 0


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_metrics_count_what_happened(tiny_bundle: Path) -> None:
    with running({"tiny": tiny_bundle}, Serving(patience=0.0, options={"threads": 1})) as client:
        client.images(prompt="1", n=3)
        client.images(prompt="77")
        client.ask("/made/up")
        text = client.ask("/metrics").content.decode()
    for line in (
        'starflow_images_total{model="tiny"} 3.0',
        'starflow_batches_total{model="tiny"} 2.0',
        'starflow_batch_fill_sum{model="tiny"} 1.5',
        'starflow_waiting_images{model="tiny"} 0.0',
        'starflow_requests_total{path="/v1/images/generations",status="200"} 1.0',
        'starflow_requests_total{path="/v1/images/generations",status="400"} 1.0',
        'starflow_requests_total{path="other",status="404"} 1.0',
    ):
        assert line in text


def test_metrics_say_how_much_of_the_memory_bandwidth_the_flow_used(tiny_bundle: Path) -> None:
    with running({"tiny": tiny_bundle}, Serving(options={"threads": 1, "variant": "cpu-fp32"})) as client:
        assert client.images(prompt="1", n=2).status == 200
        text = client.ask("/metrics").content.decode()
    told = {
        name: float(value)
        for name, value in re.findall(r'^(starflow_\w+){model="tiny"(?:,stage="flow")?} (\S+)$', text, re.MULTILINE)
    }
    bundle = Bundle.open(tiny_bundle)
    blocks, tokens = bundle.autoregressive.blocks, bundle.autoregressive.model.tokens
    step = sum(step_bytes(graph, blocks[graph.block]) for graph in bundle.variant("cpu-fp32", "cpu").graphs)
    assert told["starflow_flow_read_bytes_total"] == step * tokens
    rate = told["starflow_flow_read_bytes_total"] / told["starflow_stage_seconds_sum"]
    bandwidth = told["starflow_memory_bandwidth_bytes_per_second"]
    assert bandwidth > 1e8 and told["starflow_memory_bandwidth_percent"] == pytest.approx(100 * rate / bandwidth)
