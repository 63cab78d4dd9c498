"""The velocity graph of a continuous flow: one run is one evaluation of v, and the solver's update after it.

A run is row `pass` of a table that solver and grid decide (`starflow.runtime.ode.fixed_step` has the rule and what it means):

    v = v(point, time)                guided: v_c + w (v_c - v_u), from rows [conditional, null]
    total_next = total + share * v
    x_next = total_next if last, else x
    point_next = x_next + ahead * v
    pass_next = pass + 1

So Euler's method, midpoint, Heun's and Runge's are one graph over one copy of the weights, and a device that copies every
`*_next` back to where it came from integrates by itself, whatever the grid. Adaptive solvers take `velocity`.

State and update are float32; the network is computed in the variant's type.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import onnx

from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights
from starflow.export.onnx_graph.network_writer import NetworkWriter
from starflow.training.continuous.model import time_frequencies

MAX_PASSES = 256  # rows of the table: 4 KiB; longer integrations get it again


@dataclass(frozen=True)
class VelocityGraphOptions:
    """What a velocity graph is written for."""

    lowering: str  # `portable` or `cpu`: how attention is written
    dtype: np.dtype  # type weights are stored in; the cpu lowering computes in float32 whatever that is
    batch: int  # images B integrated together
    guided: bool  # whether the network runs 2B rows [conditional, null]
    data_shape: tuple[int, ...]  # shape of noise, states and data: [C, H, W], or [D] for points
    condition_tokens: int = 0

    @property
    def rows(self) -> int:
        """Rows of the network."""
        return 2 * self.batch if self.guided else self.batch

    @property
    def compute_dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.lowering == "cpu" else self.dtype


class VelocityGraph(ABC):
    """Writes a velocity graph; what kind of network it holds is decided by its subclasses.

    `graph` is an empty builder over the variant's weight file.
    """

    def __init__(self, graph: GraphBuilder, weights: NetworkWeights, options: VelocityGraphOptions) -> None:
        self.graph, self.weights, self.options = graph, weights, options
        self.write = NetworkWriter(graph, weights, options.dtype, options.compute_dtype)

    @abstractmethod
    def velocity(self, point: str, time: str) -> str:
        """The network: [rows, *data_shape] float32 from the point [B, *data_shape] float32 and time [1, 1] float32."""

    def build(self) -> onnx.ModelProto:
        """The finished graph."""
        graph, shape = self.graph, [self.options.batch, *self.options.data_shape]
        index = graph.input("pass", np.int64, [1])
        table = graph.input("passes", np.float32, [MAX_PASSES, 4])
        x, point, total = (graph.input(name, np.float32, shape) for name in ("x", "point", "total"))
        row = graph.op("Gather", table, index, axis=0)
        time, ahead, share, last = graph.ops("Split", row, count=4, axis=1, num_outputs=4)
        v = self.velocity(point, time)
        with graph.scope("update"):
            if self.options.guided:
                v = self._guide(v)
            total_next = graph.op("Add", total, self._scaled(v, share))
            is_last = graph.op("Greater", self._everywhere(last), graph.constant(0.5, np.float32))
            x_next = graph.op("Where", is_last, total_next, x)
            point_next = graph.op("Add", x_next, self._scaled(v, ahead))
            pass_next = graph.op("Add", index, graph.constant([1], np.int64))
        for value, name in (
            (v, "velocity"),
            (x_next, "x_next"),
            (point_next, "point_next"),
            (total_next, "total_next"),
        ):
            graph.output(value, name, np.float32, shape)
        graph.output(pass_next, "pass_next", np.int64, [1])
        return graph.model({"starflow.block": "0", "starflow.lowering": self.options.lowering})

    def time_embedding(self, time: str) -> str:
        """time_embed(time_features(t)), [1, channels]; the features in float32."""
        graph = self.graph
        angles = graph.op("Mul", time, self.write.table("time_frequencies", time_frequencies().numpy()))
        features = graph.op("Concat", graph.op("Cos", angles), graph.op("Sin", angles), axis=1)
        hidden = self.write.silu(self.write.linear(self.write.narrow(features), "time_embed.0"))
        return self.write.linear(hidden, "time_embed.2")

    def _guide(self, v: str) -> str:
        """Classifier-free guidance (Ho & Salimans, 2022): v_c + w (v_c - v_u)."""
        graph = self.graph
        weight = graph.input("guidance", np.float32, [self.options.batch])
        weight = graph.reshape(weight, [self.options.batch] + [1] * len(self.options.data_shape))
        conditional, null = graph.ops("Split", v, count=2, axis=0, num_outputs=2)
        return graph.op("Add", conditional, graph.op("Mul", weight, graph.op("Sub", conditional, null)))

    def _everywhere(self, scalar: str) -> str:
        """[1, 1] -> a shape that broadcasts over the state."""
        return self.graph.reshape(scalar, [1] * (1 + len(self.options.data_shape)))

    def _scaled(self, v: str, factor: str) -> str:
        return self.graph.op("Mul", v, self._everywhere(factor))
