"""The spread within classes against numbers drawn with a known one."""

import numpy as np
from benchmarks.digits_distribution import within_class_std


def test_the_spread_within_a_class_leaves_out_that_between_classes() -> None:
    labels = np.arange(4000) % 2
    draw = np.random.default_rng(0)
    spread = np.where(labels == 0, 10, 30)[:, None, None]
    images = np.clip(
        np.where(labels == 0, 60, 180)[:, None, None] + spread * draw.standard_normal((4000, 3, 3)), 0, 255
    )
    expected = np.sqrt((10**2 + 30**2) / 2) / 127.5
    assert np.isclose(within_class_std(images.astype(np.uint8), labels), expected, rtol=0.02)
    alike = np.repeat(images[:2].astype(np.uint8), 3, axis=0)
    assert within_class_std(alike, np.repeat([0, 1], 3)) < 1e-12
