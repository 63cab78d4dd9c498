"""The velocity graph of a multilayer perceptron (`starflow.training.continuous.mlp`)."""

from starflow.export.continuous.graph import VelocityGraph, VelocityGraphOptions
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights
from starflow.training.continuous.config import ContinuousMlpConfig


class MlpVelocityGraph(VelocityGraph):
    """v(x, t) of points; both lowerings are the same, since there is no attention."""

    def __init__(
        self, graph: GraphBuilder, weights: NetworkWeights, options: VelocityGraphOptions, config: ContinuousMlpConfig
    ) -> None:
        super().__init__(graph, weights, options)
        self.config = config

    def velocity(self, point: str, time: str) -> str:
        write = self.write
        h = write.linear(write.narrow(point), "proj_in")
        h = write.silu(self.graph.op("Add", h, self.time_embedding(time)))
        for index in range(self.config.layers):
            with self.graph.scope(f"layer{index}"):
                h = write.silu(write.linear(h, f"layers.{index}"))
        return write.widen(write.linear(h, "proj_out"))
