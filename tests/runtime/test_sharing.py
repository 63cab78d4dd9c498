"""Samplers that threads share, and pools: every image is that of the same call made alone."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime import Bundle, Guidance, Sampler, SamplerPool
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.plain.errors import UsageError

CALLS = [(label, 10 * label + guidance, float(guidance)) for label in range(8) for guidance in range(3)]


def call(make: Callable[..., NDArray], which: tuple[int, int, float]) -> NDArray:
    label, seed, guidance = which
    return make([label], seed=seed, guidance=guidance)


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> list[NDArray]:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        return [call(sampler.sample, which) for which in CALLS]


def test_threads_that_share_a_sampler_take_turns(tiny_bundle: Path, alone: list[NDArray]) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda which: call(sampler.sample, which), CALLS))
    assert all(map(np.array_equal, found, alone))


def test_a_pool_runs_calls_at_the_same_time(tiny_bundle: Path, alone: list[NDArray]) -> None:
    with SamplerPool.open(tiny_bundle, size=3, threads=1) as pool:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda which: call(pool.sample, which), CALLS))
        together = threading.Barrier(3, timeout=30)  # broken unless three calls reach it
        with ThreadPoolExecutor(3) as threads:
            waits = [
                threads.submit(pool.generate, pool_noise(pool), [1], on_block=lambda *_: together.wait())
                for _ in range(3)
            ]
            made = [wait.result() for wait in waits]
    assert all(map(np.array_equal, found, alone))
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])


def pool_noise(pool: SamplerPool) -> NDArray:
    with pool.sampler() as sampler:
        return sampler.noise(1)


def test_a_pool_of_one_chooses_its_threads_as_a_sampler_does(tiny_bundle: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    for size, threads in ((1, 0), (2, max(1, cores // 2)), (cores + 1, 1)):
        with SamplerPool.open(tiny_bundle, size=size) as pool, pool.sampler() as sampler:
            assert isinstance(sampler.backend, OnnxRuntimeBackend) and sampler.backend._threads == threads


def test_captions_and_decoders_are_shared_as_well(emoji_bundle: Path) -> None:
    captions = ["red apple", "dog face", "", "rocket"]
    with Sampler.open(emoji_bundle, threads=1) as sampler:
        features = [sampler.encode_captions([caption]) for caption in captions]
        latents = sampler.noise(1)
        pixels = sampler.to_images(latents)
    with SamplerPool.open(emoji_bundle, size=2, threads=1) as pool, ThreadPoolExecutor(4) as threads:

        def encode(caption: str) -> tuple[NDArray, NDArray]:
            with pool.sampler() as borrowed:
                return borrowed.encode_captions([caption]), borrowed.to_images(latents)

        found = list(threads.map(encode, captions))
    assert all(np.array_equal(made, expected) for (made, _), expected in zip(found, features, strict=True))
    assert all(np.array_equal(made, pixels) for _, made in found)


def test_twins_have_one_copy_of_the_weights_until_the_last_is_closed(tiny_bundle: Path, alone: list[NDArray]) -> None:
    first = Sampler.open(tiny_bundle, threads=1)
    second = first.twin()
    call(first.sample, CALLS[0]), call(second.sample, CALLS[0])
    runners = [sampler.backend.block_runner(0) for sampler in (first, second)]
    assert runners[0] is not runners[1] and runners[0].session is runners[1].session  # type: ignore[attr-defined]
    first.close()
    assert np.array_equal(call(second.sample, CALLS[5]), alone[5])
    second.close()
    with pytest.raises(UsageError, match="is closed"):
        second.sample()


def test_a_closed_pool_refuses_and_waits_for_those_inside(tiny_bundle: Path) -> None:
    pool = SamplerPool.open(tiny_bundle, size=1, threads=1)
    with pytest.raises(TimeoutError), pool.sampler(), pool.sampler(timeout=0.01):
        pass
    with pool.sampler() as borrowed:
        closing = threading.Thread(target=pool.close)
        closing.start()
        with pytest.raises(UsageError, match="this pool is closed"), pool.sampler():
            pass
        assert closing.is_alive() and borrowed.sample().shape == (1, 8, 8, 1)
    closing.join(30)
    assert not closing.is_alive()
    pool.close()
    with pytest.raises(UsageError, match="a pool of 0 samplers"):
        SamplerPool.open(tiny_bundle, size=0)


class CancelledError(Exception):
    pass


@pytest.mark.parametrize("when", [0, 1])
def test_a_callback_that_raises_cancels_and_harms_nothing(tiny_bundle: Path, alone: list[NDArray], when: int) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        reports = []

        def progress(done: int, total: int) -> None:
            reports.append(done)
            if len(reports) > when:
                raise CancelledError

        with pytest.raises(CancelledError):
            sampler.sample([1, 2], guidance=2.0, progress=progress)
        assert len(reports) == when + 1 and np.all(np.diff([0, *reports]) <= 16)
        assert np.array_equal(call(sampler.sample, CALLS[7]), alone[7])


def test_nan_of_a_cancelled_call_does_not_reach_the_next(tiny_bundle: Path, alone: list[NDArray]) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        runner = sampler.backend.block_runner(len(sampler.manifest.variants[0].graphs) - 1)

        def progress(done: int, total: int) -> None:
            for spec in runner.graph.inputs:  # as if the graph had computed NaN at every position so far
                if spec.role == "cache":
                    runner.store(spec.name, np.nan)
            raise CancelledError

        with pytest.raises(CancelledError):
            sampler.sample([1], progress=progress)
        assert np.array_equal(call(sampler.sample, CALLS[3]), alone[3])


def test_a_callback_may_use_the_sampler_but_not_its_buffers(tiny_bundle: Path) -> None:
    refused: list[object] = []

    def preview(block: int, x: NDArray) -> None:
        assert sampler.to_images(x).shape == (1, 8, 8, 1)
        for forbidden in (sampler.sample, sampler.close, lambda: sampler.invert(x)):
            with pytest.raises(UsageError, match="in the midst of a call") as error:
                forbidden()
            refused.append(error)

    with Sampler.open(tiny_bundle, threads=1) as sampler:
        noise = sampler.noise(1)
        found = sampler.generate(noise, [1], on_block=preview)
        assert refused and np.array_equal(found, sampler.generate(noise, [1]))


def test_images_of_one_call_may_differ_in_seed_and_guidance(tiny_bundle: Path, alone: list[NDArray]) -> None:
    labels, seeds, weights = zip(*CALLS, strict=True)
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        found = sampler.sample(list(labels), seed=list(seeds), guidance=list(weights))
        one_seed_each = sampler.sample(seed=[5, 6])
        assert np.array_equal(one_seed_each[1:], sampler.sample(seed=6))
        for wrong, message in (
            ({"seed": [1, 2, 3]}, "2 labels for 3 images"),
            ({"seed": [1]}, "1 seeds for 2 images"),
            ({"seed": [1, -2]}, "seed -2 is not"),
            ({"seed": 1.5}, "seed 1.5 is not"),
            ({"guidance": [1.0, 2.0, 3.0]}, "3 guidance weights for 2 images"),
            ({"guidance": [1.0, "much"]}, "guidance 'much' is not a weight"),
            ({"temperature": 0.0}, "temperature 0.0 is not"),
            ({"guidance": Guidance(1.0, schedule=(1.0,))}, "1 factors for 2 flow blocks"),
        ):
            with pytest.raises(UsageError, match=message):
                sampler.sample([1, 2], **wrong)
    assert np.array_equal(found, np.concatenate(alone))


@pytest.mark.parametrize("fixture", ["tiny_bundle", "captioned_bundle", "tarflow_engines", "continuous_bundle"])
def test_an_image_without_guidance_beside_one_with_it_is_what_it_is_alone(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    opened = request.getfixturevalue(fixture)
    kind = "portable-fp16" if fixture == "tarflow_engines" else "cpu-fp32"
    with Sampler.open(opened, variant=kind, backend="onnxruntime", threads=1) as sampler:
        conditions: list = ["a cat", "two dogs"] if sampler.manifest.text else [1, 2]
        noise = sampler.noise(2, seed=[3, 4])
        together = sampler.generate(noise, conditions, guidance=[0.0, 2.0])
        for index, weight in enumerate((0.0, 2.0)):
            alone = sampler.generate(noise[index : index + 1], [conditions[index]], guidance=weight)
            np.testing.assert_array_equal(together[index : index + 1], alone)


def test_a_schedule_weighs_each_flow_block(tarflow_engines: Bundle) -> None:
    """A factor of 0 is what the block makes without guidance, whatever the others do."""
    outputs: dict[object, dict[int, NDArray]] = {}
    with Sampler.open(tarflow_engines, variant="portable-fp16", backend="onnxruntime", threads=1) as sampler:
        noise = sampler.noise(2)
        for guidance in (0.0, Guidance(2.0), Guidance(4.0, schedule=(0.0, 0.5)), Guidance(4.0, schedule=(0.5, 0.0))):
            seen = outputs.setdefault(guidance, {})
            sampler.generate(noise, [1, 2], guidance=guidance, on_block=seen.__setitem__)
    plain, guided, deep_only, shallow_only = outputs.values()
    np.testing.assert_array_equal(deep_only[1], guided[1])
    np.testing.assert_array_equal(shallow_only[1], plain[1])
    assert np.abs(shallow_only[0] - plain[0]).max() > 1e-3 and np.abs(deep_only[0] - guided[0]).max() > 1e-3


def test_an_autoregressive_flow_takes_no_interval(tiny_bundle: Path) -> None:
    with (
        Sampler.open(tiny_bundle, threads=1) as sampler,
        pytest.raises(UsageError, match="guidance interval is for continuous flows"),
    ):
        sampler.sample([1], guidance=Guidance(1.0, interval=(0.2, 0.8)))


def test_temperature_scales_the_noise(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        np.testing.assert_array_equal(sampler.noise(2, 3, 0.5), np.float32(0.5) * sampler.noise(2, 3))
        cold = sampler.sample([1], seed=3, temperature=0.5)
        expected = sampler.to_images(sampler.generate(sampler.noise(1, 3) / 2, [1]))
    assert np.array_equal(cold, expected)


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_bundle", "captioned_bundle"])
@pytest.mark.parametrize("shared", ["sampler", "pool"])
def test_sixteen_threads_and_two_thousand_calls(fixture: str, shared: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    conditions: list = ["a cat", "two dogs", ""] if fixture == "captioned_bundle" else [1, 5, 9]
    wanted = [(conditions[index % 3], index % 20, float(index % 4)) for index in range(60)]

    def run(make: Callable[..., NDArray], which: tuple[object, int, float]) -> NDArray:
        condition, seed, guidance = which
        return make([condition], seed=seed, guidance=guidance)

    opened = (
        Sampler.open(path, threads=1, plan="sequential")
        if shared == "sampler"
        else SamplerPool.open(path, size=4, threads=1, plan="sequential")
    )
    with Sampler.open(path, threads=1, plan="sequential") as sampler:
        alone = [run(sampler.sample, which) for which in wanted]
    with opened as both, ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda index: run(both.sample, wanted[index % 60]), range(2000)))
    assert all(np.array_equal(image, alone[index % 60]) for index, image in enumerate(found))
