"""The networks beside the flow as real engines on a simulated device: from captions to pixels without ONNX Runtime."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_build import read_network_builds
from starflow.runtime.command_line import main
from starflow.runtime.networks.caption_encoder import encode_once
from starflow.runtime.plain.errors import BackendError, BundleError
from starflow.runtime.sampler import Sampler
from tests.simulated_device.device import Fault
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import relative_error

CAPTIONS = ["a red apple", "two cats", "sun"]
HALF = 5e-3  # what `starflow verify` allows networks whose products are float16


@contextmanager
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Importing ONNX Runtime, or what of this package needs it, fails."""
    with monkeypatch.context() as patched:
        for name in [each for each in sys.modules if each.split(".")[0] == "onnxruntime"]:
            patched.delitem(sys.modules, name)
        for name in [each for each in sys.modules if each.startswith("starflow.runtime.backends.onnxruntime.")]:
            patched.delitem(sys.modules, name)
        patched.setitem(sys.modules, "onnxruntime", None)
        yield


def statements(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of networks without an engine."""
    found = [record for record in caplog.records if record.name == "starflow.runtime.backends.tensorrt.networks"]
    assert all(record.levelno == logging.WARNING for record in found)
    return [record.getMessage() for record in found]


def everything(sampler: Sampler) -> dict[str, NDArray]:
    """What each network makes, for three images in batches of two, from the same inputs."""
    data = sampler.noise(3, seed=3)
    features = sampler.encode_captions(CAPTIONS)
    pixels = np.tanh(np.random.default_rng(0).standard_normal((3, 1, 16, 16), np.float32))
    given = np.random.default_rng(1).standard_normal(features.shape, np.float32)
    beside = sampler._running.beside.autoencoder
    return {
        "features": features,
        "latents": sampler.encode_images(pixels),
        "decoded": beside.decode(data, noisy=False),
        "noisy decoded": beside.decode(data, noisy=True),
        "score": sampler.denoise(data, given, how="score") - data,
        "learned": sampler.denoise(data, given, how="learned") - data,
    }


def test_from_captions_to_pixels_without_onnxruntime(
    captioned_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    how: Any = {"guidance": 1.5, "seed": 2}
    with Sampler.open(captioned_engines.root, backend="onnxruntime", variant="portable-fp16", threads=1) as sampler:
        expected, images = everything(sampler), sampler.sample(CAPTIONS, **how)
        denoised = sampler.sample(CAPTIONS, denoise="score", **how)
    device = simulate(capability="12.0")
    for kernels in captioned_engines.root.rglob("*.runtime-cache"):  # of tests that ran the engines before
        kernels.unlink()
    with without_onnxruntime(monkeypatch), Sampler.open(captioned_engines.root, backend="tensorrt") as sampler:
        found, found_images = everything(sampler), sampler.sample(CAPTIONS, **how)
        found_denoised = sampler.sample(CAPTIONS, denoise="score", **how)
        assert device.counts["kernels compiled"] > 0
    errors = {name: relative_error(found[name], value) for name, value in expected.items()}
    assert all(0 < error <= HALF for error in errors.values()), errors
    for one, other in ((images, found_images), (denoised, found_denoised)):
        assert one.shape == (3, 16, 16, 1) and one.std() > 0
        assert np.abs(one.astype(int) - other).mean() < 2, "of 255"
    assert statements(caplog) == [], "every network has an engine"


def test_captions_are_encoded_before_the_flow_is_loaded(
    captioned_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `starflow sample` does; nothing of it stays on the device."""
    expected, expected_null = encode_once(captioned_engines, CAPTIONS)
    device = simulate()
    with without_onnxruntime(monkeypatch):
        found, null = encode_once(captioned_engines, CAPTIONS, backend="tensorrt")
    assert device.counts["cudaGraphLaunch"] == 4, "the empty caption too"
    assert device.leaks() == []
    assert relative_error(found, expected) <= HALF and relative_error(null, expected_null) <= HALF
    np.testing.assert_array_equal(encode_once(captioned_engines, CAPTIONS, backend="auto")[0], found)
    simulate(gpus=0)
    np.testing.assert_array_equal(encode_once(captioned_engines, CAPTIONS, backend="auto")[0], expected)
    with pytest.raises(BackendError, match="no usable NVIDIA GPU"):
        encode_once(captioned_engines, CAPTIONS, backend="tensorrt")


def test_twins_share_the_engines(captioned_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with Sampler.open(captioned_engines.root, backend="tensorrt") as sampler:
        images = sampler.sample(CAPTIONS, seed=2)
        before = device.counts["cudaMalloc"]
        twin = sampler.twin()
        flow = device.counts["cudaMalloc"] - before
        np.testing.assert_array_equal(twin.sample(CAPTIONS, seed=2), images)
        assert device.counts["cudaMalloc"] == before + flow, "the networks' buffers are there"
        twin.close()
        np.testing.assert_array_equal(sampler.sample(CAPTIONS, seed=2), images)


@pytest.fixture
def copy(captioned_engines: Bundle, tmp_path: Path) -> Path:
    """A bundle whose network engines may be changed."""
    return Path(shutil.copytree(captioned_engines.root, tmp_path / "copy"))


def change_record(root: Path, change: Any) -> None:
    (path,) = root.glob("engines/*/networks/networks.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_network_without_an_engine_is_named(
    copy: Path, simulate: Simulate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_record(copy, lambda record: record.update(engines=record["engines"][:-3]))
    simulate()
    with Sampler.open(copy, backend="tensorrt") as sampler:
        data = sampler.noise(2)
        for _ in range(2):
            sampler.denoise(data, "sun", how="learned")
    (said,) = statements(caplog)
    assert said == (
        "the denoiser learned-fp16 has no engine for Simulated GPU, compute capability 8.9; ONNX Runtime runs it; build "
        f"one: starflow build {copy} --target tensorrt-rtx:8.9 --networks learned"
    )
    missing = pytest.raises(BackendError, match=r"has no engine for .*, and onnxruntime is not installed; build one")
    with without_onnxruntime(monkeypatch), Sampler.open(copy, backend="tensorrt") as sampler, missing:
        sampler.denoise(data, "sun", how="learned")


def test_a_bundle_of_before_has_engines_of_the_flow_alone(
    copy: Path, simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(copy / "engines" / "tensorrt-rtx-8.9_12.0" / "networks")
    simulate()
    with Sampler.open(copy, backend="tensorrt") as sampler:
        images = sampler.sample("sun", seed=1, denoise="none")
    assert images.shape == (1, 16, 16, 1)
    assert [said.split(" has no")[0] for said in statements(caplog)] == ["the text encoder", "the decoder"]


def test_damaged_and_foreign_engines_are_refused(copy: Path, simulate: Simulate) -> None:
    simulate()
    (record,) = read_network_builds(Bundle.open(copy))
    path = copy / next(each for each in record.engines if "text_encoder" in each.graph).file.path
    content = path.read_bytes()

    def refused(message: str) -> None:
        with Sampler.open(copy, backend="tensorrt") as sampler, pytest.raises(BundleError, match=message):
            sampler.encode_captions(CAPTIONS)

    path.write_bytes(content[:-1])
    refused(r"text-encoder-.*has \d+ bytes, networks.json says .*build again: starflow build .*--networks text-encoder")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("tensorrt-rtx cannot load it .*--networks text-encoder --force")
    path.write_bytes(content)
    change_record(copy, lambda record: record["engines"][0].update(key="0" * 64))
    refused("was not built from the present graph of the text encoder; build again: ")
    change_record(copy, lambda record: record.update(version="1.6.0"))
    refused("were built by tensorrt-rtx 1.6.0 and load only there")
    change_record(copy, lambda record: record.update(schema_version=2))
    with pytest.raises(BundleError, match="schema"):
        Sampler.open(copy, backend="tensorrt")


@pytest.mark.parametrize("number", range(1, 5))
def test_too_little_memory_frees_everything(captioned_engines: Bundle, simulate: Simulate, number: int) -> None:
    """At each allocation of a network: the device is as it was, and the next call goes on."""
    device = simulate()
    with Sampler.open(captioned_engines.root, backend="tensorrt") as sampler:
        device.faults["cudaMalloc", device.counts["cudaMalloc"] + number] = Fault("cudaErrorMemoryAllocation")
        with pytest.raises(BackendError, match=r"of the text encoder needs .* bytes of GPU memory"):
            sampler.encode_captions(CAPTIONS)
        assert np.isfinite(sampler.encode_captions(CAPTIONS)).all()


def test_a_run_that_cannot_be_captured(
    captioned_engines: Bundle, simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    simulate()
    expected = encode_once(captioned_engines, ["sun"], backend="tensorrt")[0]
    simulate().capturable = False
    np.testing.assert_array_equal(encode_once(captioned_engines, ["sun"], backend="tensorrt")[0], expected)
    (said,) = [record.getMessage() for record in caplog.records if record.name.endswith("tensorrt.engine")]
    assert said.startswith("the text encoder: runs cannot be captured into a CUDA graph (")


def test_a_copy_takes_the_engines_along(captioned_engines: Bundle, tmp_path: Path) -> None:
    assert main(["copy", str(captioned_engines.root), "-o", str(tmp_path / "copy")]) == 0
    (record,) = read_network_builds(Bundle.open(tmp_path / "copy"))
    assert len(record.engines) == 6
    assert all((tmp_path / "copy" / each.file.path).stat().st_size == each.file.bytes for each in record.engines)


def test_inspect_lists_them(captioned_engines: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(captioned_engines.root)]) == 0
    assert "networks   tensorrt-rtx-8.9_12.0: " in capsys.readouterr().out
    assert main(["inspect", str(captioned_engines.root), "--json"]) == 0
    (build,) = json.loads(capsys.readouterr().out)["network_engines"]
    assert {each["graph"].rpartition("/")[2]: each["precision"] for each in build["networks"]}.keys() == {
        "text_encoder.fp32.onnx",
        "encoder.fp32.onnx",
        "decoder.fp32.onnx",
        "noisy_decoder.fp32.onnx",
        "score.fp16.onnx",
        "denoiser.fp16.onnx",
    }
