"""Three ways to write a cached attention, behind one small interface.

*portable* keeps activations [rows, S] and uses only ONNX operators: TensorScatter into the cache, then Attention over the
whole capacity under an explicit boolean mask. TensorRT reads it rightly (its parser ignores `nonpad_kv_seqlen`, so the
mask is not optional), and every ONNX Runtime provider runs it.

*cpu* keeps activations [S, rows] and uses ONNX Runtime's GroupQueryAttention, whose work follows the valid length. That
operator refuses several rows together with several tokens and a past; all rows stand at the same position, though, so
they are handed over as further heads of a single row, which a time-major layout makes a free reshape.

*cuda* is for ONNX Runtime's CUDA kernels of the same operator: everything has the variant's type, and all that moves from step to
step lies on the device, so that a step is captured once as a CUDA graph and replayed. Rows stay rows: the kernel takes any number of
them with one token each, or with several tokens where none precedes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow.export.autoregressive.geometry import StepGeometry
from starflow.export.onnx_graph.builder import MICROSOFT, GraphBuilder
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
        """Shape of one cache tensor."""

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


class GroupQueryLowering(Lowering):
    """GroupQueryAttention over a shared buffer.

    The kernel takes head sizes that are a multiple of 8, and turns (rotary) those that are a multiple of 16 itself;
    published models have 64. Other sizes are turned by a RotaryEmbedding and padded with zeros.
    """

    @property
    @abstractmethod
    def _sequences(self) -> int:
        """What the kernel sees as rows; all other rows are further heads of these."""

    @abstractmethod
    def _lengths(self, step: StepValues) -> tuple[str, str]:
        """The last of the S positions for each sequence, int32, and the length that the kernel is told, a scalar int32."""

    def begin(self, step: StepValues) -> None:
        self.step = step
        self._fused_rotary = step.rotary is not None and self.block.head_dim % 16 == 0
        self._last, self._length = self._lengths(step)
        self._tables = tuple(self._cast(table, self.dtype) for table in step.rotary or () if self._fused_rotary)
        if step.rotary and not self._fused_rotary:
            shape = self.graph.op("Concat", self.graph.constant([self._sequences], np.int64), step.count, axis=0)
            self._ids = self.graph.op("Expand", step.positions, shape)

    def attend(self, q: str, k: str, v: str, keys: str, values: str) -> tuple[str, str, str]:
        graph, block, rows, sequences = self.graph, self.block, self.geometry.rows, self._sequences
        size, times = block.head_dim, rows // sequences
        heads, kv_heads = times * block.heads, times * block.kv_heads
        if self.step.inverse_temperature:
            along = [1, rows, 1] if self.time_major else [rows, 1, 1]
            factor = self._cast(graph.reshape(self.step.inverse_temperature, along), self.dtype)
            q = graph.op("Mul", self.unflatten(q, rows, block.heads * size), factor)
        q = graph.reshape(q, [sequences, -1, heads * size])
        k, v = (graph.reshape(value, [sequences, -1, kv_heads * size]) for value in (k, v))
        if self.step.rotary and not self._fused_rotary:
            q, k = self._rotate(q, self._ids, num_heads=heads), self._rotate(k, self._ids, num_heads=kv_heads)
        q, k, v = self._pad(q, heads), self._pad(k, kv_heads), self._pad(v, kv_heads)
        return self._attend(q, k, v, keys, values)

    def _attend(self, q: str, k: str, v: str, keys: str, values: str) -> tuple[str, str, str]:
        graph, block, times = self.graph, self.block, self.geometry.rows // self._sequences
        heads = times * block.heads
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": times * block.kv_heads}
        attributes["scale"] = block.head_dim**-0.5
        if self._fused_rotary:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(not block.half_rotation)}
        out, keys, values = graph.ops(
            "GroupQueryAttention", q, k, v, keys, values, self._last, self._length, *self._tables,
            count=3, domain=MICROSOFT, **attributes,
        )  # fmt: skip
        return graph.reshape(self._unpad(out, heads), [-1, block.heads * block.head_dim]), keys, values

    @property
    def _padding(self) -> int:
        return -self.block.head_dim % 8

    def _pad(self, value: str, heads: int) -> str:
        if not self._padding:
            return value
        graph, size = self.graph, self.block.head_dim
        split = graph.reshape(value, [self._sequences, -1, heads, size])
        padded = graph.op("Pad", split, graph.constant([0] * 7 + [self._padding], np.int64))
        return graph.reshape(padded, [self._sequences, -1, heads * (size + self._padding)])

    def _unpad(self, value: str, heads: int) -> str:
        if not self._padding:
            return value
        graph, size = self.graph, self.block.head_dim
        split = graph.reshape(value, [self._sequences, -1, heads, size + self._padding])
        bounds = (graph.constant([bound], np.int64) for bound in (0, size, 3))
        return graph.op("Slice", split, *bounds)


class CpuLowering(GroupQueryLowering):
    """Rows as heads."""

    name = "cpu"
    time_major = True
    feeds_position = False
    may_lack_condition = False
    _sequences = 1

    @staticmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        return [1, geometry.rows * block.kv_heads, geometry.capacity, -(-block.head_dim // 8) * 8]

    def _lengths(self, step: StepValues) -> tuple[str, str]:
        graph = self.graph
        length = graph.cast(graph.op("Add", step.position, step.count), np.int32)
        return graph.op("Sub", length, graph.constant([1], np.int32)), graph.reshape(length, [])


class CudaLowering(GroupQueryLowering):
    """Single tokens at any position; several tokens only from position 0 on, which is all that a prefill needs.

    The host knows no position, so for a single token the kernel is told the whole cache as the length. How many positions count
    it reads on the device; the length decides only how it splits its work.
    """

    name = "cuda"
    time_major = False
    feeds_position = True
    may_lack_condition = True

    @property
    def _sequences(self) -> int:
        return self.geometry.rows

    @staticmethod
    def cache_shape(block: BlockConfig, geometry: StepGeometry) -> list[int]:
        rows, kv_heads, _, size = PortableLowering.cache_shape(block, geometry)
        return [rows, kv_heads, CudaLowering.slots(geometry), -(-size // 8) * 8]

    @staticmethod
    def slots(geometry: StepGeometry) -> int:
        return -(-geometry.capacity // 8) * 8  # with any other number, kernels fall back to a slow path

    def _lengths(self, step: StepValues) -> tuple[str, str]:
        graph, one = self.graph, self.graph.constant([1], np.int64)
        last = graph.cast(graph.op("Add", step.position, graph.op("Sub", step.count, one)), np.int32)
        whole = graph.constant([self.slots(self.geometry)], np.int64)
        length = graph.op("Where", graph.op("Equal", step.count, one), whole, step.count)
        rows = graph.constant([self.geometry.rows], np.int64)
        return graph.op("Expand", last, rows), graph.reshape(graph.cast(length, np.int32), [])

    @property
    def takes_packed(self) -> bool:
        """Whether the kernel takes q, k and v as the projection leaves them."""
        turns = self.step.rotary is None or self._fused_rotary
        return turns and not (self.step.inverse_temperature or self.block.qk_norm or self._padding)

    def attend_packed(self, qkv: str, keys: str, values: str) -> tuple[str, str, str]:
        """As `attend`, of flat [q, k, v]."""
        width = (self.block.heads + 2 * self.block.kv_heads) * self.block.head_dim
        return self._attend(self.unflatten(qkv, self.geometry.rows, width), "", "", keys, values)


LOWERINGS: dict[str, type[Lowering]] = {"portable": PortableLowering, "cpu": CpuLowering, "cuda": CudaLowering}
