"""Three ways to write a cached attention, behind one small interface.

*portable* keeps activations [rows, S] and uses only ONNX operators: TensorScatter into the cache, then Attention over the
whole capacity under an explicit boolean mask. TensorRT reads it rightly (its parser ignores `nonpad_kv_seqlen`, so the
mask is not optional), and every ONNX Runtime provider runs it.

*cpu* keeps activations [S, rows] and uses ONNX Runtime's GroupQueryAttention, whose work follows the valid length. That
operator refuses several rows together with several tokens and a past; all rows stand at the same position, though, so
they are handed over as further heads of a single row, which a time-major layout makes a free reshape.

*cuda* is the same for ONNX Runtime's CUDA kernels: everything has the variant's type, and all that moves from step to step lies
on the device, so that a step is captured once as a CUDA graph and replayed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow.export.autoregressive.geometry import StepGeometry
from starflow.export.onnx_graph.builder import MICROSOFT, GraphBuilder
from starflow.runtime.plain.errors import ExportError
from starflow.training.autoregressive.config import BlockConfig


@dataclass(frozen=True)
class StepValues:
    """Values every layer of a step shares."""

    position: str  # [1] int64, of the first of the S tokens
    positions: str  # [S] int64
    count: str  # [1] int64, S
    rotary: tuple[str, str] | None  # names of the cos and sin tables [capacity, head_dim / 2], or None
    inverse_temperature: str | None  # [rows] float32 that queries are multiplied by, or None


class Lowering(ABC):
    """Layout of activations and form of attention for one step graph.

    Flat activations are [rows * S, width] or [S * rows, width]; `arrange`, `flatten` and `unflatten` know which.
    """

    name: str
    time_major: bool
    feeds_position: bool  # whether the graph returns the next position, for loops that stay on a device
    may_lack_condition: bool  # whether a run that lies behind the condition may be given none

    def __init__(self, graph: GraphBuilder, block: BlockConfig, geometry: StepGeometry, dtype: np.dtype) -> None:
        self.graph, self.block, self.geometry, self.dtype = graph, block, geometry, dtype

    @staticmethod
    @abstractmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        """Shape of one cache tensor; ExportError if the lowering cannot hold the block."""

    @staticmethod
    def slots(geometry: StepGeometry) -> int:
        """Positions of a cache, at least the block's capacity."""
        return geometry.capacity

    @abstractmethod
    def begin(self, step: StepValues) -> None:
        """Emit what all layers share; called once, before the first `attend`."""

    @abstractmethod
    def attend(self, q: str, k: str, v: str, keys: str, values: str) -> tuple[str, str, str]:
        """Flat q, k, v (before rotary) and the caches -> flat output and the caches' outputs."""

    def arrange(self, value: str) -> str:
        """[rows, S, width], as inputs and outputs come, <-> the layout's own order of the first two axes."""
        return self.graph.op("Transpose", value, perm=[1, 0, 2]) if self.time_major else value

    @property
    def row_axis(self) -> int:
        return 1 if self.time_major else 0

    def flatten(self, value: str, width: int) -> str:
        return self.graph.reshape(value, [-1, width])

    def unflatten(self, value: str, rows: int, width: int) -> str:
        return self.graph.reshape(value, [-1, rows, width] if self.time_major else [rows, -1, width])

    def per_token(self, value: str) -> str:
        """[S] -> broadcastable over the layout's three axes."""
        return self.graph.reshape(value, [-1, 1, 1] if self.time_major else [1, -1, 1])

    def _rotate(self, value: str, ids: str, **attributes: Any) -> str:
        assert self.step.rotary is not None
        interleaved = int(not self.block.half_rotation)
        wide = self._cast(value, np.float32)
        turned = self.graph.op("RotaryEmbedding", wide, *self.step.rotary, ids, interleaved=interleaved, **attributes)
        return self._cast(turned, self.dtype)

    def _cast(self, value: str, dtype: np.dtype | type) -> str:
        return value if self.dtype == np.float32 else self.graph.cast(value, dtype)

    step: StepValues


class PortableLowering(Lowering):
    """TensorScatter and Attention with an explicit mask."""

    name = "portable"
    time_major = False
    feeds_position = True
    may_lack_condition = True

    @staticmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        return [geometry.rows, block.kv_heads, geometry.capacity, block.head_dim]

    def begin(self, step: StepValues) -> None:
        graph, rows = self.graph, self.geometry.rows
        self.step = step
        slots = graph.constant(np.arange(self.geometry.capacity)[None], np.int64)
        self._mask = graph.op("LessOrEqual", slots, graph.reshape(step.positions, [-1, 1]))
        self._write_index = graph.op("Expand", step.position, graph.constant([rows], np.int64))
        if step.rotary:
            shape = graph.op("Concat", graph.constant([rows], np.int64), step.count, axis=0)
            self._ids = graph.op("Expand", step.positions, shape)
        if step.inverse_temperature:
            factor = graph.reshape(step.inverse_temperature, [rows, 1, 1, 1])
            self._factor = self._cast(factor, self.dtype)

    def attend(self, q: str, k: str, v: str, keys: str, values: str) -> tuple[str, str, str]:
        graph, block, rows = self.graph, self.block, self.geometry.rows
        q, k, v = (
            graph.op("Transpose", graph.reshape(value, [rows, -1, heads, block.head_dim]), perm=[0, 2, 1, 3])
            for value, heads in ((q, block.heads), (k, block.kv_heads), (v, block.kv_heads))
        )
        if self.step.rotary:
            q, k = self._rotate(q, self._ids), self._rotate(k, self._ids)
        if self.step.inverse_temperature:
            q = graph.op("Mul", q, self._factor)
        keys, values = (
            graph.op("TensorScatter", cache, new, self._write_index, axis=-2, mode="linear")
            for cache, new in ((keys, k), (values, v))
        )
        out = graph.op("Attention", q, keys, values, self._mask, scale=block.head_dim**-0.5)
        return (
            graph.reshape(graph.op("Transpose", out, perm=[0, 2, 1, 3]), [-1, block.heads * block.head_dim]),
            keys,
            values,
        )


class CpuLowering(Lowering):
    """GroupQueryAttention over a shared buffer, rows as heads.

    The kernel takes head sizes that are a multiple of 8, and turns (rotary) those that are a multiple of 16 itself;
    published models have 64. Other sizes are turned by a RotaryEmbedding and padded with zeros.
    """

    name = "cpu"
    time_major = True
    feeds_position = False
    may_lack_condition = False

    @staticmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        return [1, geometry.rows * block.kv_heads, geometry.capacity, -(-block.head_dim // 8) * 8]

    def begin(self, step: StepValues) -> None:
        graph = self.graph
        self.step = step
        self._fused_rotary = step.rotary is not None and self.block.head_dim % 16 == 0
        self._last, self._length = self._lengths(step)
        self._tables = tuple(self._cast(table, self.dtype) for table in step.rotary or () if self._fused_rotary)
        if step.rotary and not self._fused_rotary:
            self._ids = graph.reshape(step.positions, [1, -1])

    def _lengths(self, step: StepValues) -> tuple[str, str]:
        """The last position of the S tokens, [1] int32, and the length that the kernel is told, a scalar int32."""
        graph = self.graph
        length = graph.cast(graph.op("Add", step.position, step.count), np.int32)
        return graph.op("Sub", length, graph.constant([1], np.int32)), graph.reshape(length, [])

    def attend(self, q: str, k: str, v: str, keys: str, values: str) -> tuple[str, str, str]:
        graph, block, rows = self.graph, self.block, self.geometry.rows
        heads, kv_heads, size = rows * block.heads, rows * block.kv_heads, block.head_dim
        if self.step.inverse_temperature:
            factor = self._cast(graph.reshape(self.step.inverse_temperature, [1, rows, 1]), self.dtype)
            q = graph.op("Mul", graph.reshape(q, [-1, rows, block.heads * size]), factor)
        q = graph.reshape(q, [1, -1, heads * size])
        k, v = (graph.reshape(value, [1, -1, kv_heads * size]) for value in (k, v))
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5}
        if self._fused_rotary:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(not block.half_rotation)}
        elif self.step.rotary:
            q, k = self._rotate(q, self._ids, num_heads=heads), self._rotate(k, self._ids, num_heads=kv_heads)
        q, k, v = self._pad(q, heads), self._pad(k, kv_heads), self._pad(v, kv_heads)
        out, keys, values = graph.ops(
            "GroupQueryAttention", q, k, v, keys, values, self._last, self._length, *self._tables,
            count=3, domain=MICROSOFT, **attributes,
        )  # fmt: skip
        return graph.reshape(self._unpad(out, heads), [-1, block.heads * size]), keys, values

    @property
    def _padding(self) -> int:
        return -self.block.head_dim % 8

    def _pad(self, value: str, heads: int) -> str:
        if not self._padding:
            return value
        graph, size = self.graph, self.block.head_dim
        split = graph.reshape(value, [1, -1, heads, size])
        padded = graph.op("Pad", split, graph.constant([0] * 7 + [self._padding], np.int64))
        return graph.reshape(padded, [1, -1, heads * (size + self._padding)])

    def _unpad(self, value: str, heads: int) -> str:
        if not self._padding:
            return value
        graph, size = self.graph, self.block.head_dim
        split = graph.reshape(value, [1, -1, heads, size + self._padding])
        bounds = (graph.constant([bound], np.int64) for bound in (0, size, 3))
        return graph.op("Slice", split, *bounds)


class CudaLowering(CpuLowering):
    """GroupQueryAttention on a GPU: the host knows no position, so the kernel is told the whole cache as the length.

    How many positions count it reads on the device, so nothing changes but how it splits its work.
    """

    name = "cuda"
    feeds_position = True
    may_lack_condition = True

    @staticmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        heads = geometry.rows * block.heads
        if heads > MOST_CUDA_HEADS:
            raise ExportError(
                f"--lowering cuda: flow block {block.index} has {geometry.rows} rows of {block.heads} heads, and the kernel takes "
                f"{MOST_CUDA_HEADS} heads; export with --batch {max(geometry.batch * MOST_CUDA_HEADS // heads, 1)} or less"
            )
        rows, kv_heads, _, size = PortableLowering.cache_shape(block, geometry)
        return [1, rows * kv_heads, CudaLowering.slots(geometry), -(-size // 8) * 8]

    @staticmethod
    def slots(geometry: StepGeometry) -> int:
        return -(-geometry.capacity // 8) * 8  # with any other number, kernels fall back to a slow path

    def _lengths(self, step: StepValues) -> tuple[str, str]:
        graph = self.graph
        behind = graph.op("Sub", step.count, graph.constant([1], np.int64))
        last = graph.cast(graph.op("Add", step.position, behind), np.int32)
        return last, graph.constant(self.slots(self.geometry), np.int32)


MOST_CUDA_HEADS = 1024  # threads of a block of kernels
LOWERINGS: dict[str, type[Lowering]] = {"portable": PortableLowering, "cpu": CpuLowering, "cuda": CudaLowering}
