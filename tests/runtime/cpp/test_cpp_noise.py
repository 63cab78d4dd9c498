"""The noise of a seed in C++, bit by bit that of the manual and of NumPy's generator."""

import re
from pathlib import Path

import numpy as np
import pytest

from starflow.runtime.noise import draw_noise
from starflow.runtime.normal_numbers import normal_numbers
from tests import cpp_library

pytestmark = pytest.mark.usefixtures("cpp_folder")


def test_numbers_are_those_of_the_manual(repository: Path) -> None:
    manual = (repository / "docs/bundle.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*?0x.*?) \| (\S*0x\S*) \|$", manual, re.MULTILINE)
    assert len(rows) == 4
    for seed, image, first, last in rows:
        found = cpp_library.normal_numbers(int(seed), int(image), 1_000_000)
        expected = [float.fromhex(number) for number in (*first.split(", "), last)]
        assert [*found[:4], found[999_999]] == expected


@pytest.mark.parametrize(("seed", "image"), [(0, 0), (2**64 - 1, 2**63), (12345678901234567890, 3)])
def test_a_million_numbers_are_those_of_python(seed: int, image: int) -> None:
    np.testing.assert_array_equal(
        cpp_library.normal_numbers(seed, image, 999_999), normal_numbers(seed, image, 999_999)
    )


def test_a_sampler_draws_the_noise_of_python() -> None:
    shipped = cpp_library.REPOSITORY / "runtime/shipped/digits"
    with cpp_library.CppSampler(shipped, (1, 28, 28), threads=1) as sampler:
        expected = draw_noise((784,), 3, 7, 0.7)
        np.testing.assert_array_equal(sampler.noise(3, 7, 0.7), expected)
