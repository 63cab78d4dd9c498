"""Engines of several latent shapes in one bundle, on the simulated device."""

import json
from pathlib import Path

import numpy as np
import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from starflow.runtime.plain.errors import BackendError
from tests.models import class_config, write_checkpoint
from tests.simulated_device.engine_library import EngineLibrary
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import FP16, generate, interpreter, onnxruntime, relative_error

BUILD = ["--target", "tensorrt-rtx:8.9", "--json"]


@pytest.fixture(scope="module")
def bundle(engine_library: EngineLibrary, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random STARFlow at two shapes of equally many tokens, built by one command."""
    folder = tmp_path_factory.mktemp("shapes-engines")
    write_checkpoint(folder / "checkpoint", class_config(channels=64, layers_per_block=(1, 1)))
    options = ExportOptions(precisions=("fp16",), batch=2, shape=(4, 8), other_shapes=[(8, 4)])
    export_checkpoint(folder / "checkpoint", folder / "bundle", options)
    assert main(["build", str(folder / "bundle"), *BUILD]) == 0
    whole = Bundle.open(folder / "bundle")
    for shape in ((4, 8), (8, 4)):
        (record,) = read_builds(whole.at_shape(shape))
        engine_library.add(whole.at_shape(shape), record)
    return whole


@pytest.mark.parametrize("shape", [(4, 8), (8, 4)])
def test_every_shape_has_engines_of_its_own(bundle: Bundle, simulate: Simulate, shape: tuple[int, int]) -> None:
    at = bundle.at_shape(shape)
    expected = generate(at, interpreter(at))
    simulate()
    found = generate(at, open_tensorrt(at))
    assert found.shape == (3, 1, *shape)
    np.testing.assert_array_equal(found, expected)
    assert relative_error(found, generate(at, onnxruntime(at))) <= FP16


def test_building_again_builds_nothing_and_keeps_all(bundle: Bundle, capsys: pytest.CaptureFixture) -> None:
    before = sorted(bundle.root.glob("engines/**/*.engine"))
    assert len(before) == 4
    assert main(["build", str(bundle.root), *BUILD]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert [engine["shape"] for engine in engines] == [None, None, [8, 4], [8, 4]]
    assert all(engine["unchanged"] for engine in engines)
    assert sorted(bundle.root.glob("engines/**/*.engine")) == before


def test_a_shape_without_engines_says_how_to_make_them(bundle: Bundle, tmp_path: Path, simulate: Simulate) -> None:
    import shutil

    shutil.copytree(bundle.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "engines" / "8x4")
    copy = Bundle.open(tmp_path / "copy")
    simulate()
    open_tensorrt(copy).close()
    with pytest.raises(BackendError, match="has no engines at 8x4 for"):
        open_tensorrt(copy.at_shape((8, 4)))
