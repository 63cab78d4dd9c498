"""Several samplers run at the same time in one process, each in a thread of its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cpp_library import REPOSITORY, CppError, CppSampler

pytestmark = pytest.mark.usefixtures("cpp_folder")

SHIPPED = REPOSITORY / "runtime/shipped/digits"


def digits(seed: int) -> NDArray:
    with CppSampler(SHIPPED, (1, 28, 28), batch=1, threads=1) as sampler:
        return sampler.generate(sampler.noise(1, seed), np.array([seed]), guidance=1.0)


def test_samplers_of_two_threads_do_not_meet() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(digits, range(6)))
    for seed, data in enumerate(found):
        np.testing.assert_array_equal(data, digits(seed))


def test_a_thread_sees_its_own_error() -> None:
    def wrong(label: int) -> str:
        with CppSampler(SHIPPED, (1, 28, 28), batch=1, threads=1) as sampler:
            noise = sampler.noise(1, 0)
            for _ in range(200):
                with pytest.raises(CppError) as refused:
                    sampler.generate(noise, np.array([label]))
        return str(refused.value)

    with ThreadPoolExecutor(2) as pool:
        for label, message in zip((10, 11), pool.map(wrong, (10, 11)), strict=True):
            assert f"label {label} " in message


def test_a_callback_may_not_call_its_own_sampler() -> None:
    with CppSampler(SHIPPED, (1, 28, 28), batch=1, threads=1) as sampler:
        noise, said = sampler.noise(1, 0), []

        def again(_: int, __: int) -> bool:
            try:
                sampler.generate(noise)
            except CppError as error:
                said.append(str(error))
            return True

        data = sampler.generate(noise, progress=again)
        assert said and "in the midst of a call" in said[0]
        np.testing.assert_array_equal(sampler.generate(noise), data)
