"""A repository of `starflow triton` in the real Triton: its pixels, merged requests, previews, and what it says of wrong requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.command_line import main
from tests.made_once import MadeOnce
from tests.runtime.serve.triton.triton_server import Environment, Server, make_triton, running, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_triton(repository, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def digits(repository: Path, made_once: MadeOnce) -> Path:
    """The shipped digits for batches of eight."""
    checkpoint = repository / "examples/digits/checkpoint"
    made = made_once("digits8", lambda folder: export_checkpoint(checkpoint, folder / "digits", ExportOptions(batch=8)))
    return made / "digits"


@pytest.fixture(scope="module")
def server(
    environment: Environment, digits: Path, captioned_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repositories")
    repositories = [folder / "one", folder / "two"]
    assert main(["triton", str(digits), "-o", str(repositories[0]), "--threads", "1"]) == 0
    captioned = ["triton", str(captioned_bundle), "-o", str(repositories[1]), "--threads", "1", "--name", "captioned"]
    assert main(captioned) == 0
    with running(environment, folder / "log", *repositories) as made:
        yield made


@pytest.fixture(scope="module")
def alone(digits: Path) -> Iterator[Sampler]:
    with Sampler.open(digits, threads=1) as sampler:
        yield sampler


def given(**tensors: Any) -> dict[str, NDArray]:
    """Inputs [N, 1] of their types; arrays as they are."""
    kinds = {"label": np.int64, "seed": np.int64, "caption": object}
    return {
        name: values if isinstance(values, np.ndarray) else np.array(values, kinds.get(name, np.float32))[:, None]
        for name, values in tensors.items()
    }


LABELS, SEEDS, WEIGHTS = [3, 4, 9], [70, 12, 9], [2.0, 0.0, 3.5]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_pixels_are_those_of_the_sampler(server: Server, alone: Sampler, protocol: str) -> None:
    inputs = given(label=LABELS, seed=SEEDS, guidance=WEIGHTS, temperature=[0.9] * 3)
    both, image = server.ask(protocol, ("digits", inputs, ()), ("digits", inputs, ("image",)))
    expected = alone.sample(LABELS, seed=SEEDS, guidance=WEIGHTS, temperature=0.9)
    assert len(np.unique(expected)) > 2 and set(image) == {"image"} and set(both) == {"image", "latent"}
    assert image["image"].dtype == np.uint8 and np.array_equal(image["image"], expected)
    data = alone.generate(alone.noise(3, SEEDS, 0.9), LABELS, guidance=WEIGHTS)
    assert np.array_equal(both["image"], expected) and np.array_equal(both["latent"], data)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_captions_and_conditions(server: Server, captioned_bundle: Path, protocol: str) -> None:
    texts = ["a cat", "zwei Hunde ☃"]
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        expected = sampler.sample(texts, seed=[3, 4], guidance=1.5)
        tokens = sampler.encode_captions(texts)
    inputs = {"seed": [3, 4], "guidance": [1.5, 1.5]}
    worded, encoded = server.ask(
        protocol,
        ("captioned", given(caption=[text.encode() for text in texts], **inputs), ("image",)),
        ("captioned", given(condition=tokens, **inputs), ("image",)),
    )
    assert np.array_equal(worded["image"], expected) and np.array_equal(encoded["image"], expected)


def test_eight_clients_share_an_execution(server: Server, alone: Sampler) -> None:
    weights = [each / 2 for each in range(8)]
    asked = [
        ("digits", given(label=[each], seed=[100 + each], guidance=[weights[each]]), ("image",)) for each in range(8)
    ]
    before = server.counts("digits")
    answers = server.ask("together", *asked)
    images, executions = server.counts("digits") - before
    print(f"8 requests at the same time: {images} images, {executions} executions")
    assert images == 8 and executions <= 2
    for each, found in enumerate(answers):
        assert np.array_equal(found["image"], alone.sample([each], seed=[100 + each], guidance=weights[each]))


def test_previews_are_streamed(server: Server, alone: Sampler) -> None:
    inputs = given(label=LABELS, seed=SEEDS, guidance=WEIGHTS)
    (answers,) = server.ask("stream", ("digits-previews", inputs, ()))
    blocks: dict[int, NDArray] = {}
    noise = alone.noise(3, SEEDS)
    data = alone.generate(noise, LABELS, guidance=WEIGHTS, on_block=lambda at, made: blocks.update({at: made.copy()}))
    left = [each["blocks_left"].ravel().tolist() for each in answers]
    assert left == [[count] * 3 for count in range(len(blocks) - 1, -1, -1)] and len(blocks) > 2
    for count, each in zip(left, answers, strict=True):
        assert np.array_equal(each["image"], alone.to_images(blocks[count[0]] if count[0] else data))


def test_a_stream_of_a_wrong_request_ends_with_a_sentence(server: Server) -> None:
    ((refused,),) = server.ask("stream", ("digits-previews", given(label=[77]), ()))
    assert refused["error"] == "label 77 is not a class of this model; it has 0 to 9"


WRONG: dict[str, tuple[str, str, dict[str, NDArray]]] = {
    "a label out of range": ("digits", "label 77 is not a class of this model; it has 0 to 9", given(label=[77])),
    "another shape": ("digits", "unexpected shape for input 'label'", {"label": np.zeros((2, 2), np.int64)}),
    "another type": ("digits", "data-type is 'FP32', but model", given(label=np.zeros((1, 1), np.float32))),
    "too many images": ("digits", "batch-size must be <= 8", given(label=[1] * 9)),
    "inputs of several lengths": ("digits", "batch size does not match", given(label=[1, 2], seed=[1])),
    "an unknown input": ("digits", "unexpected inference input 'prompt'", given(prompt=[1.0])),
    "NaN guidance": ("digits", "guidance nan is not a weight", given(label=[1], guidance=[np.nan])),
    "a huge guidance": ("digits", "guidance 1e+30: give at most 1000", given(label=[1], guidance=[1e30])),
    "a negative seed": ("digits", "seed -1 is not a whole number from 0", given(seed=[-1])),
    "a temperature below 0": ("digits", "give a number > 0", given(label=[1], seed=[1], temperature=[-1])),
    "a long caption": ("captioned", "characters, expected at most", given(caption=[b"x" * 1_000_000])),
    "text that is not UTF-8": ("captioned", "a string is not UTF-8", given(caption=[b"\xff"])),
    "a NaN condition": ("captioned", "condition holds NaN", given(condition=np.full((1, 8, 32), np.nan, np.float32))),
    "what makes NaN": (
        "captioned",
        "produced NaN or infinity",
        given(condition=np.full((1, 8, 32), 3e38, np.float32), seed=[1]),
    ),
    "two conditions": (
        "captioned",
        "inputs caption and condition exclude each other",
        given(caption=[b"a"], condition=np.zeros((1, 8, 32), np.float32)),
    ),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_wrong_requests_get_a_sentence(server: Server, protocol: str) -> None:
    answers = server.ask(protocol, *((model, inputs, ()) for model, _, inputs in WRONG.values()))
    status = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    for (case, (_, message, _)), found in zip(WRONG.items(), answers, strict=True):
        print(f"{protocol} {case}: {found.get('status')} {found.get('error')}")
        assert message in found["error"] and "\n" not in found["error"] and ".py" not in found["error"], case
        assert found["status"] == status, case
    (fine,) = server.ask(protocol, ("digits", given(label=[1], seed=[1]), ()))
    assert "error" not in fine


def test_a_model_that_cannot_be_opened_says_why(environment: Environment, tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["triton", str(tiny_bundle), "-o", str(tmp_path / "repository"), "--name", "tiny"]) == 0
    weights = tmp_path / "repository/tiny/1/bundle/manifest.json"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = tmp_path / "repository/tiny-previews/config.pbtxt"
    config.write_text(config.read_text().replace('key: "plan"', 'key: "plann"'))
    process, server = start(environment, tmp_path / "log", [tmp_path / "repository"])
    assert process.wait(120) == 1
    log = server.log.read_text()
    assert "manifest.json: was changed after it was written" in log
    assert "config.pbtxt, parameters: unknown field plann; did you mean plan?" in log
