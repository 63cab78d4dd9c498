"""Which matrices a treatment takes, in blocks of which size, and at what price."""

import numpy as np
import pytest

from starflow.calibration.weights.treatment import (
    CPU_INT4,
    CPU_INT8,
    CPU_INT8_WIDE,
    CUDA_INT4,
    CUDA_INT8,
    PORTABLE_FP8,
    PORTABLE_INT4,
    PORTABLE_INT8,
    SCALE_TYPES,
    TREATMENTS,
    Treatment,
)


@pytest.mark.parametrize(
    ("treatment", "inputs", "block"),
    [
        (CPU_INT8, 256, 128),
        (CPU_INT8, 192, 64),
        (CPU_INT8, 96, 32),
        (CPU_INT8, 48, 16),
        (CPU_INT8, 40, None),
        (CPU_INT8_WIDE, 256, 128),
        (CPU_INT4, 64, 32),
        (CPU_INT4, 48, 16),
        (CPU_INT4, 24, None),
        (PORTABLE_INT4, 192, 64),
        (PORTABLE_INT4, 96, 32),
        (PORTABLE_INT4, 48, None),
        (PORTABLE_INT8, 7, 7),
        (PORTABLE_FP8, 31, 31),
        (CUDA_INT8, 192, 64),
        (CUDA_INT8, 48, None),
        (CUDA_INT4, 96, 32),
        (CUDA_INT4, 48, None),
    ],
)
def test_the_largest_block_that_divides_the_inputs(treatment: Treatment, inputs: int, block: int | None) -> None:
    assert treatment.block(inputs) == block
    assert treatment.takes(1 << 14, inputs) == (block is not None)


def test_small_matrices_are_left_alone() -> None:
    assert CPU_INT8.takes(128, 128) and not CPU_INT8.takes(127, 128)
    assert PORTABLE_INT8.takes(16384, 1) and not PORTABLE_INT8.takes(16383, 1)


def test_wide_activations_cost_more_than_the_bytes() -> None:
    assert CPU_INT8.cost(1000) == 1000 and CPU_INT8_WIDE.cost(1000) == 1750
    assert [t.name for ladder in TREATMENTS.values() for t in ladder if t.wide] == ["int8-wide"] * 2


def test_ladders_go_from_the_smallest_to_the_most_exact() -> None:
    assert {key: [each.name for each in ladder] for key, ladder in TREATMENTS.items()} == {
        ("cpu", "int8"): ["int8", "int8-wide"],
        ("cpu", "int4"): ["int4", "int8", "int8-wide"],
        ("portable", "int8"): ["int8"],
        ("portable", "int4"): ["int4", "int8"],
        ("portable", "fp8"): ["fp8"],
        ("cuda", "int8"): ["int8"],
        ("cuda", "int4"): ["int4", "int8"],
    }
    for ladder in TREATMENTS.values():
        costs = [each.cost(each.format.bits) for each in ladder]
        assert costs == sorted(costs) and all(each.format.name == each.name.split("-")[0] for each in ladder)
    # ONNX Runtime's integer products take float32 scales; TensorRT's dequantisation the type it computes in.
    assert {"cpu": np.float32, "portable": np.float16, "cuda": np.float16} == SCALE_TYPES
