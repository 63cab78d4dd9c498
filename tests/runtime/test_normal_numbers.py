"""The noise of a seed: Philox by its published answers, normal numbers by SciPy, and the vectors of the bundle's manual."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from starflow.runtime.noise import draw_noise
from starflow.runtime.normal_numbers import inverse_normal, normal_numbers
from starflow.runtime.plain.errors import UsageError

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)  # of Philox4x64, from the paper
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
MASK = 2**64 - 1


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Ten rounds of Philox4x64, in whole numbers of Python."""
    (k0, k1), (c0, c1, c2, c3) = key, ((counter >> shift) & MASK for shift in (0, 64, 128, 192))
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & MASK, (first >> 64) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def test_words_are_those_of_philox() -> None:
    """The known answer for key 0 and counter 0 is that of Random123's kat_vectors."""
    assert philox((0, 0), 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    for key in ((0, 0), (7, 1), (2**64 - 1, 2**64 - 1)):
        words = [word for counter in (1, 2, 3) for word in philox(key, counter)]
        expected = special.ndtri([((word >> 12) + 0.5) / 2**52 for word in words])
        np.testing.assert_allclose(normal_numbers(*key, 12), expected, rtol=2e-7)


def test_normal_numbers_are_those_of_the_distribution() -> None:
    u = np.concatenate(
        [np.linspace(2**-30, 1 - 2**-30, 100_001), 2.0 ** -np.arange(2, 54), 1 - 2.0 ** -np.arange(2, 54)]
    )
    np.testing.assert_allclose(inverse_normal(u), special.ndtri(u), rtol=1e-14, atol=1e-15)
    numbers = normal_numbers(5, 3, 1_000_000)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4e-3


def test_images_and_seeds_have_numbers_of_their_own() -> None:
    drawn = np.stack([normal_numbers(seed, image, 50_000) for seed, image in ((0, 0), (0, 1), (1, 0), (1, 1))])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.02


def test_the_manual_holds_the_numbers(repository: Path) -> None:
    """Bit by bit: another processor, compiler or library must not change one."""
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (-?0x[^|]+) \| (-?0x\S+) \|$", (repository / "docs/bundle.md").read_text(), re.M
    )
    assert len(rows) == 4
    for seed, image, first, last in rows:
        numbers = normal_numbers(int(seed), int(image), 1_000_000)
        assert [float(number).hex() for number in numbers[:4]] == first.split(", ")
        assert float(numbers[-1]).hex() == last


def test_a_temperature_scales_them() -> None:
    np.testing.assert_array_equal(
        draw_noise((2, 3, 4), 2, 9, 0.7)[1], normal_numbers(9, 1, 24).reshape(2, 3, 4) * np.float32(0.7)
    )
    np.testing.assert_array_equal(draw_noise((2, 3, 4), 2, [9, 5])[1], draw_noise((2, 3, 4), 1, 5)[0])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=r"is not a whole number from 0 to 2\^64 - 1"):
        draw_noise((2,), 1, seed)
