"""A network's parameters as graphs want them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.errors import ExportError

Tensors = Mapping[str, Callable[[], NDArray]]


class NetworkWeights:
    """Read access to a network's parameters, by their names inside it.

    Args:
        tensors: The checkpoint's tensors, float32 or float16, read one at a time.
        dtype: Type that matrices and biases are stored in.
        prefix: What precedes the names in the checkpoint.
    """

    def __init__(self, tensors: Tensors, dtype: np.dtype, prefix: str = "") -> None:
        self._tensors, self._dtype, self._prefix = tensors, dtype, prefix

    def full_name(self, name: str) -> str:
        return self._prefix + name

    def has(self, name: str) -> bool:
        return self.full_name(name) in self._tensors

    def __getitem__(self, name: str) -> NDArray:
        """A parameter as float32."""
        full = self.full_name(name)
        array = self._tensors[full]()
        if not np.isfinite(array).all():
            raise ExportError(
                f"{full} holds NaN or infinite values; export a checkpoint that was saved before they appeared"
            )
        return array.astype(np.float32, copy=False)

    def matrix(self, name: str) -> NDArray:
        """A parameter in the stored type; ExportError if a value does not fit into it."""
        array = self[name]
        largest = np.maximum(array.max(initial=0), -array.min(initial=0))
        with np.errstate(over="ignore"):
            if not np.isfinite(largest.astype(self._dtype).astype(np.float32)):
                raise ExportError(
                    f"{self.full_name(name)} reaches {largest:.3g}, more than {self._dtype} holds; "
                    "use --precision bf16 or fp32"
                )
        return array.astype(self._dtype, copy=False)
