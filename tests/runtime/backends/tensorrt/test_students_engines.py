"""Engines of flow blocks that a plan leaves to their students, on the simulated device: they are loaded when they run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime import Sampler
from starflow.runtime.backends.tensorrt.backend import TensorrtBackend, open_tensorrt
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError, BundleError
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan, Student
from tests.made_once import MadeOnce
from tests.models import class_config, write_checkpoint
from tests.simulated_device.device import Fault
from tests.simulated_device.engine_library import EngineLibrary, KnownEngine
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import FP16, interpreter, relative_error
from tests.students import write_student


@pytest.fixture(scope="module")
def bundle(engine_library: EngineLibrary, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random STARFlow of two flow blocks, a student of the deep one, and engines for batches of one and two."""

    def fill(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", class_config(channels=64, layers_per_block=(1, 1)))
        write_student(folder / "student", folder / "checkpoint", 1)
        options = ExportOptions(precisions=("fp16",), batch=(1, 2), students=(str(folder / "student"),))
        export_checkpoint(folder / "checkpoint", folder / "bundle", options)
        for place in Bundle.open(folder / "bundle").places():
            build_bundle(place, parse_target("tensorrt-rtx:8.9"))

    root = tmp_path_factory.mktemp("student-engines") / "bundle"
    shutil.copytree(made_once("unused-student-engines", fill) / "bundle", root)
    whole = Bundle.open(root)
    for place in whole.places():
        engine_library.add(place, *read_builds(place))
    return whole


def loaded(sampler: Sampler, batch: int = 2) -> list[int]:
    """The flow blocks whose engines lie on the device."""
    backend = sampler.backend
    assert isinstance(backend, TensorrtBackend)
    return sorted(backend._engines.resource._loaded[batch]._loaded)


def captured(sampler: Sampler) -> list[int]:
    """The flow blocks that have buffers and graphs in this sampler."""
    assert isinstance(sampler.backend, TensorrtBackend)
    return sorted(sampler.backend._blocks)


def sample(sampler: Sampler, count: int = 2) -> NDArray:
    return sampler.generate(sampler.noise(count, 5), np.arange(count), guidance=1.5)


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[str, NDArray]:
    """Two samples by each plan, by the network interpreter."""
    at, found = bundle.at_batch(2), {}
    for plan in ("student", "student+2", "sequential"):
        with Sampler(at, at.variant("portable-fp16", "portable"), interpreter(at), plan) as sampler:
            found[plan] = sample(sampler)
    return found


def test_only_a_student_alone_leaves_an_engine_unloaded(
    bundle: Bundle, expected: dict[str, NDArray], simulate: Simulate
) -> None:
    tokens = bundle.autoregressive.decoded_tokens()[1]
    of_a_file = DecodePlan(blocks=(BlockPlan(block=1, segments=(Student(tokens=tokens),)),))
    nearer = DecodePlan(blocks=(BlockPlan(block=1, segments=(Student(tokens=tokens, passes=2),)),))
    free = {}
    for plan, blocks, same in (
        ("student", [0], "student"),
        (of_a_file, [0], "student"),
        ("student+2", [0, 1], "student+2"),
        (nearer, [0, 1], "student+2"),
        ("auto", [0, 1], "sequential"),
    ):
        device = simulate()
        with Sampler.open(bundle, backend="tensorrt", plan=plan) as sampler:
            assert loaded(sampler) == blocks
            free[str(plan)] = device.memory.free_bytes(0)
            sampler.load()
            np.testing.assert_array_equal(sample(sampler), expected[same])
            assert loaded(sampler) == blocks
    assert free["student"] == free[str(of_a_file)] > free["student+2"] == free["auto"]


@pytest.mark.parametrize("scratch", [0, 4096])
def test_a_block_that_runs_after_all_is_loaded_then(
    bundle: Bundle, expected: dict[str, NDArray], simulate: Simulate, monkeypatch: pytest.MonkeyPatch, scratch: int
) -> None:
    """By another plan or for the inversion, in twins and at other batch sizes too; its runs need less memory than others, or more."""
    simulate()

    def scratch_bytes(engine: KnownEngine) -> int:
        return scratch if "block1" in engine.graph.name else 2048

    monkeypatch.setattr(KnownEngine, "scratch_bytes", property(scratch_bytes))
    with Sampler.open(bundle, backend="tensorrt", plan="student") as sampler:
        with sampler.twin() as twin:
            np.testing.assert_array_equal(sample(twin), expected["student"])
            assert loaded(sampler) == [0]
            twin.plan = "sequential"
            np.testing.assert_array_equal(sample(twin), expected["sequential"])
            assert loaded(sampler) == [0, 1]
            np.testing.assert_array_equal(sample(sampler), expected["student"])
            assert captured(sampler) == [0]
            with twin.twin() as another:  # runs what its sampler runs
                assert captured(another) == [0, 1]
        assert np.isfinite(sampler.invert(expected["sequential"], np.arange(2)).log_likelihood).all()
        assert captured(sampler) == [0, 1]
        np.testing.assert_array_equal(sample(sampler), expected["student"])
        alone = sample(sampler, 1)
        assert loaded(sampler, batch=1) == [0, 1]  # what ran at one size may run at another
        assert relative_error(alone, expected["student"][:1]) <= FP16


def test_a_smaller_batch_leaves_it_as_well(bundle: Bundle, simulate: Simulate) -> None:
    simulate()
    with Sampler.open(bundle, backend="tensorrt", plan="student") as sampler:
        sample(sampler, 1)
        assert loaded(sampler) == loaded(sampler, batch=1) == [0]


def test_students_of_all_blocks_leave_no_engine_and_close_frees_the_rest(bundle: Bundle, simulate: Simulate) -> None:
    device = simulate()
    backend = open_tensorrt(bundle.at_batch(2), unused=(0, 1))
    assert device.counts["cudaStreamBeginCapture"] == 0
    backend.close()
    backend.close()
    assert not device.memory.leaks() and not device.streams
    with pytest.raises(BackendError, match="the backend was closed"):
        backend.block_runner(0)


def test_what_cannot_be_loaded_later_leaves_the_sampler_as_it_was(
    bundle: Bundle, expected: dict[str, NDArray], simulate: Simulate, tmp_path: Path
) -> None:
    shutil.copytree(bundle.root, tmp_path / "copy")
    (engine,) = (tmp_path / "copy" / "engines").glob("tensorrt*/*/block1*.engine")
    content = engine.read_bytes()
    engine.unlink()
    device = simulate()
    with pytest.raises(BundleError, match=r"block1\S*engine: is missing"):
        Sampler.open(tmp_path / "copy", backend="tensorrt", plan="student+1")
    with Sampler.open(tmp_path / "copy", backend="tensorrt", plan="student") as sampler:
        np.testing.assert_array_equal(sample(sampler), expected["student"])
        sampler.plan = "sequential"
        with pytest.raises(BundleError, match=r"block1\S*engine: is missing"):
            sample(sampler)
        engine.write_bytes(content)
        device.faults["cudaMalloc", device.counts["cudaMalloc"] + 2] = Fault("cudaErrorMemoryAllocation")
        with pytest.raises(BackendError, match="bytes of GPU memory"):
            sample(sampler)
        np.testing.assert_array_equal(sample(sampler), expected["sequential"])
        sampler.plan = "student"
        np.testing.assert_array_equal(sample(sampler), expected["student"])
