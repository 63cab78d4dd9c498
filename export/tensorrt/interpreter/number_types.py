"""TensorRT's number types in NumPy, and what rounding to them does to a value.

Between layers every floating-point tensor is a float32 array, whatever the network calls it. To follow the network's own
rounding, the result of a layer is made to hold only numbers its type has. Within a layer the arithmetic stays float32, as it
does in TensorRT's kernels, where NumPy's float16 would round after each of its operations (and takes many times as long).
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

STORAGE: dict[str, np.dtype] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT4": np.dtype(ml_dtypes.int4),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
FLOATING = frozenset({"FLOAT", "HALF", "BF16"})
_NARROW = {name: STORAGE[name] for name in ("HALF", "BF16")}


def working_dtype(dtype: str) -> np.dtype:
    """The NumPy type a tensor has between layers."""
    return STORAGE["FLOAT"] if dtype in FLOATING else STORAGE[dtype]


def buffer_dtype(dtype: str, *, rounding: bool) -> np.dtype:
    """The NumPy type of a network input or output: its own where the interpreter rounds, else float32 for floating point."""
    return STORAGE[dtype] if rounding else working_dtype(dtype)


def rounding_to(dtype: str) -> Callable[[NDArray], NDArray] | None:
    """Rounds float32 arrays to the numbers a type has; None for a type that has them all."""
    if dtype not in _NARROW:
        return None
    narrow = _NARROW[dtype]

    def to_nearest(value: NDArray) -> NDArray:
        return value.astype(narrow).astype(np.float32)

    return to_nearest
