"""Engines of several batch sizes in one bundle, on the simulated device."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BackendError
from tests.models import class_config, write_checkpoint
from tests.simulated_device.engine_library import EngineLibrary
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import generate, interpreter

BUILD = ["--target", "tensorrt-rtx:8.9", "--json"]


@pytest.fixture(scope="module")
def bundle(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random STARFlow at two batch sizes, built by one command."""
    folder = tmp_path_factory.mktemp("batches-engines")
    write_checkpoint(folder / "checkpoint", class_config(channels=64, layers_per_block=(1, 1)))
    options = ExportOptions(precisions=("fp16",), batch=(1, 3))
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    assert main(["build", str(folder / "bundle"), *BUILD]) == 0
    whole = Bundle.open(folder / "bundle")
    for place in whole.places():
        (record,) = read_builds(place)
        engine_library.add(place, record)
    return whole


@pytest.mark.parametrize("batch", [1, 3])
def test_every_size_has_engines_of_its_own(bundle: Bundle, simulate: Simulate, batch: int) -> None:
    at = bundle.at_batch(batch)
    expected = generate(at, interpreter(at), count=4)
    simulate()
    np.testing.assert_array_equal(generate(at, open_tensorrt(at), count=4), expected)


def test_images_run_on_the_smallest_that_hold_them(bundle: Bundle, simulate: Simulate) -> None:
    """Engines are loaded when they are needed, once for all twins, and freed with the last of them."""
    one, three = (bundle.at_batch(batch) for batch in (1, 3))
    noise = np.random.default_rng(0).standard_normal((4, 1, 8, 8), np.float32)

    def sample(sampler: Sampler, part: slice = slice(None)) -> np.ndarray:
        return sampler.generate(noise[part], [1], guidance=1.5)

    expected = []
    for at, part in ((three, slice(3)), (one, slice(3, 4))):
        with Sampler(at, at.variant("portable-fp16", "portable"), interpreter(at)) as sampler:
            expected.append(sample(sampler, part))
    simulate()
    sampler = Sampler.open(bundle, backend="tensorrt")
    loaded = sampler.backend._engines.resource._loaded  # type: ignore[attr-defined]
    assert list(loaded) == [3]
    twin = sampler.twin()
    np.testing.assert_array_equal(sample(sampler), np.concatenate(expected))
    engines = dict(loaded)
    assert list(engines) == [3, 1]
    sampler.close()
    np.testing.assert_array_equal(sample(twin), np.concatenate(expected))
    assert loaded == engines
    twin.close()


def test_building_again_builds_nothing_and_keeps_all(bundle: Bundle, capsys: pytest.CaptureFixture) -> None:
    before = sorted(path.relative_to(bundle.root) for path in bundle.root.glob("engines/**/*.engine"))
    assert sum("batch1" in path.parts for path in before) == len(before) - 2 == 2
    assert main(["build", str(bundle.root), *BUILD]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert [(engine["shape"], engine["batch"]) for engine in engines] == [(None, None)] * 2 + [(None, 1)] * 2
    assert all(engine["unchanged"] for engine in engines)
    assert main(["build", str(bundle.root), *BUILD, "--batch", "1"]) == 0
    assert [engine["batch"] for engine in json.loads(capsys.readouterr().out)["engines"]] == [1, 1]
    assert sorted(path.relative_to(bundle.root) for path in bundle.root.glob("engines/**/*.engine")) == before
    assert main(["build", str(bundle.root), "--target", "tensorrt-rtx:8.9"]) == 0
    assert "portable-fp16 batch 1" in capsys.readouterr().out


def test_a_size_without_engines_is_refused_at_once(bundle: Bundle, tmp_path: Path, simulate: Simulate) -> None:
    shutil.copytree(bundle.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "engines" / "batch1")
    simulate()
    with pytest.raises(BackendError, match="has no engines of portable-fp16 in batches of 1 for"):
        Sampler.open(tmp_path / "copy", backend="tensorrt")
    with Sampler.open(tmp_path / "copy", backend="tensorrt", batch=3) as sampler:
        assert sampler.backend.name == "tensorrt"
    with Sampler.open(tmp_path / "copy") as sampler:
        assert sampler.backend.name == "onnxruntime cpu"


def test_a_damaged_engine_names_the_command_for_its_size(bundle: Bundle, tmp_path: Path, simulate: Simulate) -> None:
    shutil.copytree(bundle.root, tmp_path / "copy")
    engine = next((tmp_path / "copy" / "engines" / "batch1").glob("*/*/*.engine"))
    engine.write_bytes(engine.read_bytes()[:-1])
    simulate()
    with Sampler.open(tmp_path / "copy", backend="tensorrt") as sampler:
        assert len(sampler.sample([1, 2, 3])) == 3
        with pytest.raises(Exception, match=r"build again: starflow build .* --batch 1"):
            sampler.sample([1])
        assert len(sampler.sample([1, 2, 3])) == 3
