"""A block's parameters as the step graph wants them."""

import numpy as np
from numpy.typing import NDArray

from starflow.export.autoregressive.geometry import StepGeometry
from starflow.export.onnx_graph.network_weights import NetworkWeights, Tensors
from starflow.runtime.plain.errors import ExportError
from starflow.training.autoregressive.config import BlockConfig
from starflow.training.autoregressive.model import AutoregressiveFlow


class BlockWeights(NetworkWeights):
    """Read access to one block's parameters, by their names inside the block.

    Args as of `NetworkWeights`; `model` gives the rotary angles, and may be on the meta device.
    """

    def __init__(self, block: BlockConfig, model: AutoregressiveFlow, tensors: Tensors, dtype: np.dtype) -> None:
        super().__init__(tensors, dtype, f"blocks.{block.index}.")
        self.block, self._model = block, model

    def ordered_positions(self, geometry: StepGeometry) -> NDArray:
        """Learned positions in block order, cut to the network's inputs, [T or T - 1, channels] float32."""
        table = self["pos_embed"]
        if len(table) != geometry.tokens:
            raise ExportError(f"the learned positions cover {len(table)} tokens, but the shape has {geometry.tokens}")
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
        grid = f"{geometry.height}x{geometry.width}"
        return f"rotary.{self.block.positions}.{self.block.head_dim}.{geometry.prefix}+{grid}"
