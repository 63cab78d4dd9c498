"""What may become of a weight matrix, from the smallest to the most exact; what is left over keeps its type."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from starflow.calibration.weights.number_format import FP8, INT4, INT8, WeightFormat
from starflow.runtime.bundle.manifest import Lowering

WeightType = Literal["int8", "int4", "fp8"]

# A matrix smaller than this is read faster than an operator starts.
SMALLEST = 1 << 14
# How long a product with wide activations takes, over one that reads the same bytes once (two cores, 2 to 8 rows).
WIDE_TIME = 1.75


@dataclass(frozen=True)
class Treatment:
    """A way to store and multiply a matrix."""

    name: str  # as the manifest records it
    format: WeightFormat
    # Inputs that may share a scale, the best choice first; the first one that divides the inputs is taken. None: all
    # inputs of an output share one.
    blocks: tuple[int, ...] | None
    wide: bool = False  # whether activations go in as two parts of 8 bits
    by_row: bool = False  # whether a row of activations has one scale, not one for each block of inputs

    def block(self, inputs: int) -> int | None:
        """Inputs that share a scale; None where no block divides their number."""
        if self.blocks is None:
            return inputs
        return next((block for block in self.blocks if inputs % block == 0), None)

    def takes(self, outputs: int, inputs: int) -> bool:
        """Whether a matrix is worth it, and of a shape that a block divides."""
        return outputs * inputs >= SMALLEST and self.block(inputs) is not None

    def cost(self, stored: int) -> float:
        """Time of a product that reads `stored` bytes, in bytes."""
        return stored * (WIDE_TIME if self.wide else 1.0)


CPU_INT4 = Treatment("int4", INT4, (32, 16))
CPU_INT8 = Treatment("int8", INT8, (128, 64, 32, 16))
CPU_INT8_WIDE = Treatment("int8-wide", INT8, (128, 64, 32, 16), wide=True)
CPU_INT8_ROW = Treatment("int8-row", INT8, None, by_row=True)
CPU_INT8_ROW_WIDE = Treatment("int8-row-wide", INT8, None, wide=True, by_row=True)
PORTABLE_INT4 = Treatment("int4", INT4, (64, 32))
PORTABLE_INT8 = Treatment("int8", INT8, None)
PORTABLE_FP8 = Treatment("fp8", FP8, None)
CUDA_INT4 = Treatment("int4", INT4, (32, 64, 128))
CUDA_INT8 = Treatment("int8", INT8, (128, 64, 32))

TREATMENTS: dict[tuple[Lowering, WeightType], tuple[Treatment, ...]] = {
    ("cpu", "int8"): (CPU_INT8, CPU_INT8_WIDE),  # or those by row, where they are faster
    ("cpu", "int4"): (CPU_INT4, CPU_INT8, CPU_INT8_WIDE),
    ("portable", "int8"): (PORTABLE_INT8,),
    ("portable", "int4"): (PORTABLE_INT4, PORTABLE_INT8),
    ("portable", "fp8"): (PORTABLE_FP8,),
    ("cuda", "int8"): (CUDA_INT8,),
    ("cuda", "int4"): (CUDA_INT4, CUDA_INT8),
}
Product = Literal["block", "row"]

# The ladders of 8-bit products on the CPU, by what shares a scale among the activations.
CPU_PRODUCTS: dict[Product, tuple[Treatment, ...]] = {
    "block": (CPU_INT8, CPU_INT8_WIDE),
    "row": (CPU_INT8_ROW, CPU_INT8_ROW_WIDE),
}
# What scales are stored in.
SCALE_TYPES: dict[Lowering, np.dtype] = {
    "cpu": np.dtype(np.float32),
    "portable": np.dtype(np.float16),
    "cuda": np.dtype(np.float16),
}
