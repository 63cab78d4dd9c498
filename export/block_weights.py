"""A block's parameters as the step graph wants them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from starflow.export.geometry import StepGeometry
from starflow.runtime.errors import ExportError
from starflow.training.config import BlockConfig
from starflow.training.model import FlowModel


class BlockWeights:
    """Read access to one block's parameters, by their names inside the block.

    Args:
        block: The block.
        model: The model it belongs to, for its rotary angles; its own parameters may be on the meta device.
        tensors: The checkpoint's tensors, float32 or float16, read one at a time.
        dtype: Type matrices and biases are stored in.
    """

    def __init__(
        self, block: BlockConfig, model: FlowModel, tensors: Mapping[str, Callable[[], NDArray]], dtype: np.dtype
    ) -> None:
        self.block, self._model, self._tensors, self._dtype = block, model, tensors, dtype

    def full_name(self, name: str) -> str:
        return f"blocks.{self.block.index}.{name}"

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
        """A parameter in the stored type.

        Raises:
            ExportError: a value does not fit into it.
        """
        array = self[name]
        largest = np.maximum(array.max(initial=0), -array.min(initial=0))
        with np.errstate(over="ignore"):
            if not np.isfinite(largest.astype(self._dtype).astype(np.float32)):
                raise ExportError(
                    f"{self.full_name(name)} reaches {largest:.3g}, more than {self._dtype} holds; "
                    "use --precision bf16 or fp32"
                )
        return array.astype(self._dtype, copy=False)

    def ordered_positions(self, geometry: StepGeometry) -> NDArray:
        """Learned positions in block order, cut to the network's inputs, [T or T - 1, channels] float32."""
        table = self["pos_embed"]
        if len(table) != geometry.tokens:
            raise ExportError(f"learned positions cover {len(table)} tokens; {geometry.tokens} are asked for")
        return (table[::-1] if self.block.reversed else table)[: geometry.capacity - geometry.prefix]

    def class_table(self) -> NDArray:
        """Class embeddings and, last, their mean (the null class): [classes + 1, channels] float32."""
        table = self["class_embed"][:, 0]
        return np.concatenate([table, table.mean(axis=0, keepdims=True)])

    def rotary_angles(self, geometry: StepGeometry) -> NDArray | None:
        """[capacity, head_dim / 2] float32 radians, or None."""
        angles = self._model.rotation(self.block, geometry.height, geometry.width, geometry.prefix)
        return None if angles is None else angles[: geometry.capacity].numpy()

    def rotary_name(self, geometry: StepGeometry) -> str:
        """The same for all blocks whose tables are equal."""
        return f"rotary.{self.block.positions}.{self.block.head_dim}.{geometry.prefix}+{geometry.tokens}"
