"""The service of `examples/cpp-service`: it answers as `starflow serve` does, in batches, and loses no request when it ends."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime import Sampler
from starflow.runtime.serve.served_model import Serving
from tests.cpp_library import REPOSITORY, build_program
from tests.runtime.serve.conftest import Answer, Client, running, tensor

SHIPPED = REPOSITORY / "runtime/shipped/digits"


@pytest.fixture(scope="session")
def program(cpp_prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built service."""
    folder = tmp_path_factory.mktemp("service")
    build_program(REPOSITORY / "examples/cpp-service", folder, cpp_prefix)
    return folder / "starflow-service"


@contextmanager
def served(program: Path, bundle: Path, *options: object) -> Iterator[tuple[Client, str, subprocess.Popen[str]]]:
    """A running service, the name of its model, and its process, which has to end well."""
    command = [str(program), str(bundle), "--port", "0", "--threads", "1", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stderr
        said = process.stdout.readline().split()
        if not said:
            raise AssertionError(process.stderr.read())
        yield Client(int(said[0].rpartition(":")[2]), {}), said[-1], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, process.stderr.read()
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def client(program: Path) -> Iterator[Client]:
    with served(program, SHIPPED) as (made, name, _):
        assert name == "digits"
        yield made


def parts(answer: Answer) -> tuple[dict[str, Any], NDArray[Any]]:
    """The JSON of an answer without its data, and the one output, which it has as JSON or as bytes."""
    assert answer.status == 200, answer.content
    headers = {name.lower(): value for name, value in answer.headers.items()}
    length = int(headers.get("inference-header-content-length", len(answer.content)))
    described = json.loads(answer.content[:length])
    (made,) = described["outputs"]
    dtype = {"UINT8": np.uint8, "FP32": np.float32}[made["datatype"]]
    data = made.pop("data", None)
    values = np.frombuffer(answer.content[length:], dtype) if data is None else np.array(data, dtype)
    return described, values.reshape(made["shape"])


def outputs(answer: Answer) -> NDArray[Any]:
    """The one output of an answer."""
    return parts(answer)[1]


def images_and_batches(client: Client) -> list[int]:
    lines = client.ask("/metrics").content.decode().splitlines()
    return [int(line.split()[-1]) for line in lines if line.startswith(("starflow_images", "starflow_batches"))]


def test_a_request_gets_the_answer_of_starflow_serve(client: Client) -> None:
    inputs = [
        tensor("label", "INT64", [3, 1, 4]),
        tensor("seed", "INT64", [7, 8, 9]),
        tensor("guidance", "FP32", [2.0, 0.0, 1.5]),
        tensor("temperature", "FP32", [0.9]),
    ]
    seed = np.array([5], "<i8").tobytes()
    head = {
        "inputs": [
            {"name": "seed", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
            tensor("label", "BYTES", ["7"]),
        ],
        "outputs": [{"name": "latent", "parameters": {"binary_data": True}}],
    }
    content = json.dumps(head).encode()
    with running({"digits": SHIPPED}, Serving(options={"threads": 1})) as python:
        for path in ("/v2/models/digits", "/v2/models/digits/ready", "/v2/health/live", "/v2/health/ready"):
            assert client.ask(path).json == python.ask(path).json
        for fields in ({"id": "one"}, {"outputs": [{"name": "latent"}]}, {"parameters": {"binary_data_output": True}}):
            found, expected = (parts(each.infer("digits", *inputs, **fields)) for each in (client, python))
            assert found[0] == expected[0]
            np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)
        given = (content + seed, "POST")
        length = {"Inference_Header_Content_Length": str(len(content))}
        answers = [each.ask("/v2/models/digits/infer", *given, **length) for each in (client, python)]
        np.testing.assert_allclose(outputs(answers[0]), outputs(answers[1]), rtol=0, atol=1e-6)


def test_requests_at_the_same_time_share_batches(program: Path) -> None:
    with served(program, SHIPPED, "--patience", 500) as (client, _, _):

        def ask(label: int) -> NDArray[Any]:
            inputs = [tensor("label", "INT64", [label]), tensor("seed", "INT64", [40 + label])]
            return outputs(client.infer("digits", *inputs, tensor("guidance", "FP32", [label / 4])))[0]

        with ThreadPoolExecutor(8) as pool:
            found = np.stack(list(pool.map(ask, range(8))))
        images, batches = images_and_batches(client)
    assert images == 8 and batches <= 3
    with Sampler.open("digits", threads=1) as sampler:
        weights = [label / 4 for label in range(8)]
        expected = sampler.sample(list(range(8)), seed=[40 + label for label in range(8)], guidance=weights)
    assert (found == expected).mean() > 0.999 and np.abs(found.astype(int) - expected).max() <= 1


def test_conditions_and_a_request_that_fails_harm_no_other(program: Path, captioned_bundle: Path) -> None:
    """Guidance of features needs a null condition, which a request cannot give: the library refuses it in the batch."""
    with served(program, captioned_bundle, "--patience", 500) as (client, name, _):
        (condition, *_) = client.ask(f"/v2/models/{name}").json["inputs"]
        assert condition["name"] == "condition"
        values = np.random.default_rng(0).standard_normal((2, *condition["shape"][1:])).astype(np.float32)

        def ask(image: int) -> Answer:
            inputs = [tensor("condition", "FP32", values[image].ravel().tolist(), [1, *values.shape[1:]])]
            return client.infer(name, *inputs, tensor("seed", "INT64", [3]), tensor("guidance", "FP32", [float(image)]))

        with ThreadPoolExecutor(2) as pool:
            good, bad = pool.map(ask, range(2))
    assert bad.status == 400 and "null" in bad.sentence
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        np.testing.assert_array_equal(outputs(good), sampler.sample(values[:1], seed=[3]))


label = tensor("label", "INT64", [1])
WRONG: list[tuple[Any, int, str]] = [
    (b"{", 400, "cannot be read"),
    (b"[1]", 400, "no object"),
    (b"\xff", 400, "cannot be read"),
    (b"[" * 100_000, 400, "cannot be read"),
    (b" " * (2 << 20) + b"{}", 413, "bytes"),
    ({}, 400, "inputs"),
    ({"inputs": 3}, 400, ""),
    ({"inputs": [3]}, 400, ""),
    ({"inputs": [{"name": "label"}]}, 400, "datatype"),
    ({"inputs": [label, label]}, 400, "given twice"),
    ({"inputs": [tensor("colour", "INT64", [1])]}, 400, "takes label, seed"),
    ({"inputs": [tensor("label", "INT64", [10])]}, 400, "0 to 9"),
    ({"inputs": [tensor("label", "INT64", [-1])]}, 400, "0 to 9"),
    ({"inputs": [tensor("label", "INT64", [1.5])]}, 400, "not all INT64"),
    ({"inputs": [tensor("label", "INT64", [1 << 63])]}, 400, "not all INT64"),
    ({"inputs": [tensor("label", "INT64", [True])]}, 400, "not all INT64"),
    ({"inputs": [tensor("label", "FP32", [1])]}, 400, "give INT64"),
    ({"inputs": [tensor("label", "INT7", [1])]}, 400, "INT7"),
    ({"inputs": [tensor("label", "BYTES", ["eleven"])]}, 400, "no class eleven"),
    ({"inputs": [tensor("label", "INT64", [1, 2], [3])]}, 400, "do not fill"),
    ({"inputs": [tensor("label", "INT64", [1, 2], [2, 1, 1])]}, 400, "shape"),
    ({"inputs": [tensor("label", "INT64", [1], [-1])]}, 400, "shape"),
    ({"inputs": [tensor("label", "INT64", [1], [1 << 62, 1 << 62])]}, 400, "shape"),
    ({"inputs": [tensor("label", "INT64", [1, 2]), tensor("seed", "INT64", [1, 2, 3])]}, 400, "2 values for 3"),
    ({"inputs": [tensor("seed", "INT64", [-1])]}, 400, "negative"),
    ({"inputs": [tensor("seed", "INT64", list(range(65)))]}, 400, "at most 64"),
    ({"inputs": [tensor("guidance", "FP32", [-1])]}, 400, "0 to 1000"),
    ({"inputs": [tensor("guidance", "FP32", [1e300])]}, 400, "finite"),
    ({"inputs": [tensor("temperature", "FP32", [0])]}, 400, "> 0"),
    ({"inputs": [{**label, "parameters": {"binary_data_size": 8}}]}, 400, "behind the JSON"),
    ({"inputs": [label], "outputs": [{"name": "sound"}]}, 400, "makes image, latent"),
    ({"inputs": [label], "outputs": [{"name": "image"}, {"name": "latent"}]}, 400, "ask for one"),
    ({"inputs": [label], "parameters": 4}, 400, ""),
    ({"inputs": [label], "id": 4}, 400, "id"),
]


@pytest.mark.parametrize(("body", "status", "says"), WRONG)
def test_a_wrong_request_is_a_status_and_a_sentence(client: Client, body: Any, status: int, says: str) -> None:
    refused = client.ask("/v2/models/digits/infer", body)
    assert refused.status == status and says in refused.sentence and "\n" not in refused.sentence


def test_wrong_places_lengths_and_models(client: Client) -> None:
    assert client.ask("/v2/models/letters").sentence == "model letters: this server has digits"
    assert client.infer("letters", label).status == client.ask("/nowhere").status == 404
    assert client.ask("/nowhere").sentence
    for length in ("-1", "x", "99", "1" * 30, ""):
        refused = client.ask("/v2/models/digits/infer", b"{}", Inference_Header_Content_Length=length)
        assert refused.status == 400 and "2 bytes" in refused.sentence
    refused = client.ask("/v2/models/digits/infer", b'{"inputs": []}four', Inference_Header_Content_Length="14")
    assert refused.sentence == "4 bytes follow the last tensor"
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b"400" in connection.recv(100)
    assert outputs(client.infer("digits", label)).shape == (1, 28, 28, 1)


def test_a_full_queue_is_503_and_what_it_took_is_finished_after_sigterm(program: Path) -> None:
    with served(program, SHIPPED, "--max-waiting", 4, "--patience", 1000) as (client, _, process):
        statuses: list[int] = []

        def ask(_: int) -> None:
            statuses.append(client.infer("digits", tensor("label", "INT64", [1, 2])).status)

        with ThreadPoolExecutor(5) as pool:
            asked = pool.map(ask, range(5))
            end = time.monotonic() + 60
            while statuses.count(503) < 3 and time.monotonic() < end:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            list(asked)
        assert sorted(statuses) == [200, 200, 503, 503, 503]
        assert process.wait(timeout=60) == 0


def test_a_client_that_goes_away_frees_its_place(program: Path) -> None:
    with served(program, SHIPPED, "--max-waiting", 8, "--patience", 100_000) as (client, _, _):
        content = json.dumps({"inputs": [tensor("label", "INT64", [1] * 4)]})
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall((head + content).encode())
            while b'waiting_images{model="digits"} 4' not in client.ask("/metrics").content:
                time.sleep(0.01)
        while b'waiting_images{model="digits"} 0' not in client.ask("/metrics").content:
            time.sleep(0.01)
        assert outputs(client.infer("digits", tensor("label", "INT64", [1] * 8))).shape[0] == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "usage"), (["/nowhere"], ""), ([SHIPPED, "--port"], "--port"), ([SHIPPED, "--port", "x"], "whole number")],
)
def test_it_does_not_start_without_what_it_needs(program: Path, arguments: list[object], says: str) -> None:
    refused = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert refused.returncode in (1, 2) and refused.stderr.count("\n") == 1 and says in refused.stderr
