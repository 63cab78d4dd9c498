"""The native TensorRT loop on a simulated device: real engine files, the real parser, a device that enforces the contract."""

import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.export.tensorrt.build import BuildRequest, build_bundle
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.backends.block_runner import BlockInputs
from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plans.decode_plan import BlockPlan, Chunk, DecodePlan, Jacobi, Window
from starflow.runtime.sampler import Sampler
from tests.simulated_device.engine_library import EngineLibrary
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.memory import ContractViolation
from tests.simulated_device.sampling import FP16, copy_of, generate, interpreter, onnxruntime, relative_error


@pytest.fixture(scope="module")
def tiny_sample(tiny_engines: Bundle) -> NDArray:
    """The samples of the tiny bundle, by the network interpreter."""
    return generate(tiny_engines, interpreter(tiny_engines))


# What it computes


def test_digits_are_those_of_onnxruntime(digits_engines: Bundle, simulate: Simulate) -> None:
    """Of one batch: what follows it is tested on smaller models."""
    simulate()
    found = generate(digits_engines, open_tensorrt(digits_engines), count=2)
    assert relative_error(found, generate(digits_engines, onnxruntime(digits_engines), count=2)) <= FP16


@pytest.mark.parametrize("fixture", ["tiny_engines", "features_engines", "patches_engines", "tarflow_engines"])
def test_every_kind_of_model_samples_as_elsewhere(
    fixture: str, request: pytest.FixtureRequest, simulate: Simulate
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    expected = generate(bundle, interpreter(bundle))
    simulate()
    found = generate(bundle, open_tensorrt(bundle))
    # The device executes the very network the interpreter does: the loop may not change a single bit.
    np.testing.assert_array_equal(found, expected)
    assert relative_error(found, generate(bundle, onnxruntime(bundle))) <= FP16


def test_engines_need_no_onnx_runtime(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate()
    for name in [*sys.modules, "onnxruntime"]:
        if name.startswith(("onnxruntime", "starflow.runtime.backends.onnxruntime")):
            monkeypatch.setitem(sys.modules, name, None)
    with Sampler.open(tiny_engines) as sampler:
        assert sampler.backend.name == "tensorrt"
        assert sampler.sample([0, 1], guidance=1.5).shape[0] == 2


FIXED = DecodePlan(
    blocks=(
        BlockPlan(block=1, segments=(Chunk(tokens=6, passes=3), Chunk(tokens=10, passes=4, caches="exact"))),
        BlockPlan(block=0, segments=(Window(tokens=16, width=4, advances=(1, 1, 2, 4, 4, 4)),)),
    )
)


@pytest.mark.parametrize("plan", [Jacobi(5, threshold=1e-2), Jacobi(16, threshold=0.0, max_iterations=3), FIXED])
def test_chunks_are_iterated_as_elsewhere(tiny_engines: Bundle, simulate: Simulate, plan: Jacobi | DecodePlan) -> None:
    expected = generate(tiny_engines, interpreter(tiny_engines), plan=plan)
    simulate()
    np.testing.assert_array_equal(generate(tiny_engines, open_tensorrt(tiny_engines), plan=plan), expected)


def test_longer_runs_than_the_engines_take(
    features_engines: Bundle, engine_library: EngineLibrary, simulate: Simulate, tmp_path: Path
) -> None:
    bundle = copy_of(features_engines, tmp_path / "bundle")
    shutil.rmtree(bundle.root / "engines")
    build_bundle(bundle, parse_target("tensorrt-rtx:8.9"), BuildRequest(profile_tokens=(1, 2)))
    engine_library.add(bundle, *read_builds(bundle))
    expected = generate(bundle, interpreter(bundle))
    simulate()
    with open_tensorrt(bundle) as backend:
        runner = backend.block_runner(1)
        runs: list[int] = []
        run = runner.run
        runner.run = lambda count: (runs.append(count), run(count))[1]  # type: ignore[method-assign, func-returns-value]
        np.testing.assert_array_equal(generate(bundle, backend), expected)
    assert runs[:2] == [2, 1], "a condition of three tokens"
    with pytest.raises(BundleError, match=r"at most 2 tokens, not 4; .*--profile-tokens"):
        generate(bundle, open_tensorrt(bundle), plan=Jacobi(4))


def test_a_value_that_is_not_finite_does_not_stay(
    tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate
) -> None:
    simulate()
    with open_tensorrt(tiny_engines) as backend:
        runner = backend.block_runner(1)
        shape = (tiny_engines.manifest.batch, 16, 4)
        condition = np.zeros((4, 1, 11), np.float32)
        runner.prefill(BlockInputs(np.full(shape, np.nan, np.float32), condition, None, {"guidance": np.zeros(2)}))
        runner.advance(16)
        assert np.isnan(runner.read()).all()
        runner.clear()
        np.testing.assert_array_equal(generate(tiny_engines, backend), tiny_sample)


def test_a_single_run_stays_where_it_is(tiny_engines: Bundle, simulate: Simulate) -> None:
    simulate()
    with open_tensorrt(tiny_engines) as backend:
        runner = backend.block_runner(0)
        runner.seek(3)
        runner.run(1)
        assert runner.tell() == 3
        assert runner.fetch("position").item() == 3
        runner.advance(2)
        assert runner.tell() == 5
        assert runner.fetch("position").item() == 5


# How it runs


def test_a_block_is_launches_of_one_graph(tiny_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with open_tensorrt(tiny_engines) as backend:
        runner = backend.block_runner(0)
        runner.seek(0)
        before = device.counts.copy()
        runner.advance(16)
        assert device.counts - before == {"cudaSetDevice": 1, "cudaGraphLaunch": 8}  # of two steps each
        assert runner.tell() == runner.fetch("position").item() == 16
        assert runner.kernels_per_step == 1  # the simulated engine is one; the two copies are none
        before = device.counts.copy()
        runner.seek(0)
        runner.advance(3)
        assert runner.fetch("position").item() == 3


def test_a_chunk_of_fixed_passes_is_launches_of_one_graph(tiny_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with open_tensorrt(tiny_engines) as backend:
        runner = backend.block_runner(0)
        inputs = {"first": np.ones((2, 1, 4), np.float32), "tokens": np.ones((2, 8, 4), np.float32)}
        runner.run_schedule(0, **inputs, schedule=((0, 8),))  # captures
        before = device.counts.copy()
        runner.run_schedule(0, **inputs, schedule=((0, 8),) * 5)
        spent = device.counts - before
    # The guess is uploaded, the result is downloaded, and nothing waits in between.
    assert (spent["cudaGraphLaunch"], spent["cudaMemcpyAsync"], spent["cudaStreamSynchronize"]) == (5, 2, 2)


def test_everything_is_allocated_and_captured_once(tiny_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with open_tensorrt(tiny_engines) as backend:
        opened = device.counts.copy()
        blocks = len(tiny_engines.autoregressive.blocks)
        assert opened["cudaStreamBeginCapture"] == 2 * blocks  # a step, and two steps that feed each other
        with Sampler(tiny_engines, backend.variant, backend, Jacobi(8)) as sampler:
            noise = sampler.noise(2)
            first = sampler.generate(noise, [1, 2])
            after = device.counts.copy()
            np.testing.assert_array_equal(sampler.generate(noise, [1, 2]), first)
            once = ("cudaMalloc", "cudaMallocHost", "cudaStreamBeginCapture", "execute_async_v3")
            assert [device.counts[name] for name in once] == [after[name] for name in once]
            # One more graph for each block, of eight tokens, and one for the condition's only token, whose block's steps take no
            # condition; with a warm-up and a captured run each.
            more = blocks + 1
            assert after["cudaStreamBeginCapture"] == opened["cudaStreamBeginCapture"] + more
            assert after["execute_async_v3"] == opened["execute_async_v3"] + 2 * more
            assert after["cudaMalloc"] == opened["cudaMalloc"]


def test_without_a_zeroed_cache_poison_is_found(
    tiny_engines: Bundle, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate()
    monkeypatch.setattr("starflow.runtime.backends.cuda.device.Stream.zero", lambda *_: None)
    with pytest.raises(ContractViolation, match="read before anything was written"):
        open_tensorrt(tiny_engines)


# Several at once


def test_two_samplers_side_by_side(tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate) -> None:
    simulate()
    with open_tensorrt(tiny_engines) as one, open_tensorrt(tiny_engines) as other:
        runners = [backend.block_runner(1) for backend in (one, other)]
        for runner in runners:
            runner.seek(0)
        for _ in range(4):  # in turns, none of them waited for
            for runner in runners:
                runner.advance(2)
        np.testing.assert_array_equal(runners[0].fetch("samples").copy(), runners[1].fetch("samples").copy())
        np.testing.assert_array_equal(generate(tiny_engines, one), tiny_sample)
        np.testing.assert_array_equal(generate(tiny_engines, other), tiny_sample)


def test_twins_run_the_same_engines_until_the_last_is_closed(
    tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate
) -> None:
    simulate()
    first = open_tensorrt(tiny_engines)
    twins = [first.twin(), first.twin()]
    assert all(twin._engines is first._engines for twin in twins)
    first.close()
    found: dict[int, NDArray] = {}

    def sample(index: int) -> None:
        found[index] = generate(tiny_engines, twins[index])

    run_in_threads(lambda: sample(0), lambda: sample(1))
    for each in found.values():
        np.testing.assert_array_equal(each, tiny_sample)
    assert len(found) == 2


def test_a_sampler_for_each_thread(tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate) -> None:
    simulate(gpus=2)
    found: dict[int, NDArray] = {}

    def sample(index: int) -> None:
        found[index] = generate(tiny_engines, open_tensorrt(tiny_engines, device=index % 2))

    run_in_threads(*(lambda index=index: sample(index) for index in range(4)))
    assert len(found) == 4
    for each in found.values():
        np.testing.assert_array_equal(each, tiny_sample)


def test_a_sampler_may_change_threads(tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate) -> None:
    simulate(gpus=2)
    backend = open_tensorrt(tiny_engines, device=1)
    found: list[NDArray] = []
    # A thread starts out on GPU 0. This one samples and closes the sampler too.
    run_in_threads(lambda: found.append(generate(tiny_engines, backend)))
    unused = open_tensorrt(tiny_engines, device=1)
    run_in_threads(lambda: unused.close())
    np.testing.assert_array_equal(found[0], tiny_sample)


def run_in_threads(*work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# The plain TensorRT flavour


def test_the_flavour_without_a_runtime_cache(
    tiny_engines: Bundle, tiny_sample: NDArray, simulate: Simulate, tmp_path: Path
) -> None:
    bundle = copy_of(tiny_engines, tmp_path / "bundle", flavour="tensorrt")
    device = simulate("tensorrt")
    found = generate(bundle, open_tensorrt(bundle))
    np.testing.assert_array_equal(found, tiny_sample)
    assert device.counts["kernels compiled"] == 0
    assert not list(bundle.root.rglob("*.runtime-cache"))
