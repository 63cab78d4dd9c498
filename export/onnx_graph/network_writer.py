"""Layers of a network as ONNX nodes, in the number types of a variant.

Weights and activations have the variant's type; norms are float32.
"""

import numpy as np
from numpy.typing import NDArray

from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights

EPSILON = {"layer_norm": 1e-5, "rms_norm": 1e-6}


class NetworkWriter:
    """Writes linear layers and norms by the names of their parameters.

    Matrices are stored in the type `stored` and computed with in `computed`: the same, or float32.
    """

    def __init__(self, graph: GraphBuilder, weights: NetworkWeights, stored: np.dtype, computed: np.dtype) -> None:
        self.graph, self.weights, self.dtype = graph, weights, computed
        self._widened = stored != computed

    def weight(self, name: str) -> str:
        """A weight in the compute type; stored smaller, it is widened when the session loads."""
        value = self.graph.weight(self.weights.full_name(name), lambda: self.weights.matrix(name))
        return self.graph.cast(value, self.dtype) if self._widened else value

    def table(self, name: str, array: NDArray) -> str:
        """A float32 vector or table."""
        return self.graph.weight(name, lambda: array.astype(np.float32))

    def narrow(self, value: str) -> str:
        """float32 -> the compute type."""
        return value if self.dtype == np.float32 else self.graph.cast(value, self.dtype)

    def widen(self, value: str) -> str:
        """The compute type -> float32."""
        return value if self.dtype == np.float32 else self.graph.cast(value, np.float32)

    def linear(self, value: str, name: str) -> str:
        """x W^T + b on flat activations; W as the checkpoint has it, [out, in], and b where it has one."""
        bias = (self.weight(f"{name}.bias"),) if self.weights.has(f"{name}.bias") else ()
        return self.graph.op("Gemm", value, self.weight(f"{name}.weight"), *bias, transB=1)

    def layer_norm(self, value: str, name: str) -> str:
        """(x - mean(x)) / sqrt(var(x) + 1e-5) * weight + bias over the last axis; takes the compute type, gives float32."""
        terms = self.norm_terms(name, "layer_norm")
        return self.graph.op("LayerNormalization", self.widen(value), *terms, axis=-1, epsilon=EPSILON["layer_norm"])

    def rms_norm(self, value: str, name: str) -> str:
        """x / sqrt(mean(x^2) + 1e-6) * (1 + weight) over the last axis; takes the compute type, gives float32."""
        terms = self.norm_terms(name, "rms_norm")
        return self.graph.op("RMSNormalization", self.widen(value), *terms, axis=-1, epsilon=EPSILON["rms_norm"])

    def norm_terms(self, name: str, kind: str) -> tuple[str, ...]:
        """What a norm multiplies by and, a LayerNorm, adds: [width] float32."""
        weight, full = self.weights[f"{name}.weight"], self.weights.full_name(name)
        if kind == "rms_norm":
            return (self.table(f"{full}.scale", 1.0 + weight),)
        return self.table(f"{full}.weight", weight), self.table(f"{full}.bias", self.weights[f"{name}.bias"])

    def silu(self, value: str) -> str:
        """x * sigmoid(x)."""
        return self.graph.op("Mul", value, self.graph.op("Sigmoid", value))
