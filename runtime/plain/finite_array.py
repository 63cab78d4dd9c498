"""Arrays of a caller, checked."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.errors import UsageError


def finite_array(values: object, shape: tuple[int, ...], what: str, *, single: bool = False) -> NDArray[np.float32]:
    """The values as a finite array [N, *shape] float32, N >= 1. With `single`, values [*shape] count as N = 1.

    Raises:
        UsageError: they are not numbers, have another shape, or hold NaN or infinity.
    """
    expected = f"this bundle takes float32 [N, {', '.join(map(str, shape))}]"
    try:
        with np.errstate(over="ignore"):  # what is infinite then is refused below
            array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise UsageError(f"{what} is not an array of numbers; {expected}") from None
    array = array[None] if single and array.shape == shape else array
    if array.shape[1:] != shape or not len(array):
        raise UsageError(f"{what} has shape {list(array.shape)}; {expected}")
    if not np.isfinite(array).all():
        raise UsageError(f"{what} holds NaN or infinite values")
    return array
