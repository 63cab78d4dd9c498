"""The velocity graph of a diffusion transformer (`starflow.training.continuous.transformer`).

Attention runs both ways over all tokens, so there is no cache, no mask and no position. It is written in two ways:

*portable* uses ONNX's Attention over [rows, heads, S, head_dim], which TensorRT fuses.
*cpu* uses ONNX Runtime's MultiHeadAttention over [rows, S, width], which needs no transposes and never holds the scores of all
pairs of tokens at once.
"""

from typing import Any

import numpy as np
import torch

from starflow.export.continuous.graph import VelocityGraph, VelocityGraphOptions
from starflow.export.onnx_graph.builder import MICROSOFT, GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights
from starflow.training.continuous.config import ContinuousTransformerConfig
from starflow.training.layers.rotary import axis_angles


class TransformerVelocityGraph(VelocityGraph):
    """v(x, t, condition) of images."""

    def __init__(
        self,
        graph: GraphBuilder,
        weights: NetworkWeights,
        options: VelocityGraphOptions,
        config: ContinuousTransformerConfig,
    ) -> None:
        super().__init__(graph, weights, options)
        self.config = config
        _, height, width = options.data_shape
        self.grid = (height // config.patch_size, width // config.patch_size)
        self.prefix = options.condition_tokens
        self.length = self.prefix + self.grid[0] * self.grid[1]

    def velocity(self, point: str, time: str) -> str:
        graph, write, width, rows = self.graph, self.write, self.config.channels, self.options.rows
        e = self.time_embedding(time)  # [1, W]: one row for all where there is no condition
        h = graph.reshape(self._project(point), [self.options.batch, -1, width])
        if self.options.guided:
            h = graph.op("Concat", h, h, axis=0)
        if self.config.num_classes:
            label = graph.input("label", np.int64, [rows])
            table = write.table("class_embed", self.weights["class_embed"])
            e = graph.op("Add", e, write.narrow(graph.op("Gather", table, label, axis=0)))
        if self.prefix:
            text = self._project_text()
            mean = graph.op("ReduceMean", write.widen(text), graph.constant([1], np.int64), keepdims=0)
            e = graph.op("Add", e, write.narrow(mean))
            h = graph.op("Concat", text, h, axis=1)
        c = write.silu(e)
        self._begin_rotary()
        for index in range(self.config.layers):
            with graph.scope(f"layer{index}"):
                h = self._layer(h, c, f"layers.{index}")
        with graph.scope("output"):
            if self.prefix:
                bounds = (graph.constant([bound], np.int64) for bound in (self.prefix, self.length, 1))
                h = graph.op("Slice", h, *bounds)
            scale, shift = self._modulation(c, "final_modulation", 2)
            h = self._modulated_norm(h, "final_norm", scale, shift)
            return self._unpatchify(write.widen(write.linear(graph.reshape(h, [-1, width]), "proj_out")))

    # Into and out of tokens, channel fastest

    def _project(self, point: str) -> str:
        graph, patch, (rows, columns) = self.graph, self.config.patch_size, self.grid
        tiles = graph.reshape(point, [-1, self.config.in_channels, rows, patch, columns, patch])
        tokens = graph.op("Transpose", tiles, perm=[0, 2, 4, 3, 5, 1])
        return self.write.linear(self.write.narrow(graph.reshape(tokens, [-1, self.config.token_dim])), "proj_in")

    def _unpatchify(self, tokens: str) -> str:
        graph, patch, (rows, columns) = self.graph, self.config.patch_size, self.grid
        tiles = graph.reshape(tokens, [-1, rows, columns, patch, patch, self.config.in_channels])
        data = graph.op("Transpose", tiles, perm=[0, 5, 1, 3, 2, 4])
        return graph.reshape(data, [self.options.rows, *self.options.data_shape])

    def _project_text(self) -> str:
        """[rows, m, W]."""
        graph, rows, config = self.graph, self.options.rows, self.config
        condition = graph.input("condition", np.float32, [rows, self.prefix, config.txt_dim])
        flat = self.write.narrow(graph.reshape(condition, [-1, config.txt_dim]))
        return graph.reshape(self.write.linear(flat, "proj_txt"), [rows, self.prefix, config.channels])

    # Layers

    def _layer(self, h: str, c: str, name: str) -> str:
        graph, write, width = self.graph, self.write, self.config.channels
        k1, b1, g1, k2, b2, g2 = self._modulation(c, f"{name}.modulation", 6)
        x = self._modulated_norm(h, f"{name}.attention.norm", k1, b1)
        out = write.linear(self._attend(graph.reshape(x, [-1, width]), name), f"{name}.attention.proj")
        h = self._residual(h, g1, out)
        x = self._modulated_norm(h, f"{name}.mlp.norm", k2, b2)
        out = graph.op("Gelu", write.linear(graph.reshape(x, [-1, width]), f"{name}.mlp.main.0"))
        return self._residual(h, g2, write.linear(out, f"{name}.mlp.main.2"))

    def _modulation(self, c: str, name: str, count: int) -> list[str]:
        """`count` vectors [rows or 1, 1, W]."""
        made = self.graph.reshape(self.write.linear(c, name), [-1, 1, count * self.config.channels])
        return self.graph.ops("Split", made, count=count, axis=2, num_outputs=count)

    def _modulated_norm(self, h: str, name: str, scale: str, shift: str) -> str:
        """rmsnorm(h) * (1 + scale) + shift, in float32 throughout."""
        graph, write = self.graph, self.write
        factor = graph.op("Add", write.widen(scale), graph.constant(1.0, np.float32))
        scaled = graph.op("Mul", write.rms_norm(h, name), factor)
        return write.narrow(graph.op("Add", scaled, write.widen(shift)))

    def _residual(self, h: str, gate: str, out: str) -> str:
        out = self.graph.reshape(out, [self.options.rows, -1, self.config.channels])
        return self.graph.op("Add", h, self.graph.op("Mul", gate, out))

    # Attention

    def _begin_rotary(self) -> None:
        """Tables of cosines and sines, and which row of them each token has."""
        graph, config = self.graph, self.config
        angles = axis_angles(
            *self.grid,
            config.img_size // config.patch_size,
            head_dim=config.head_dim,
            text_model=config.txt_size > 0,
            text_tokens=self.prefix,
        )
        self._rotary = tuple(
            self.write.table(f"rotary.{name}", function(angles).numpy())
            for name, function in (("cos", torch.cos), ("sin", torch.sin))
        )
        positions = graph.constant(np.arange(self.length)[None], np.int64)
        self._positions = graph.op("Expand", positions, graph.constant([self.options.rows, self.length], np.int64))

    def _attend(self, x: str, name: str) -> str:
        """Flat [rows * S, W] -> the same."""
        graph, width, size = self.graph, self.config.channels, self.config.head_dim
        heads, rows = width // size, self.options.rows
        qkv = graph.reshape(self.write.linear(x, f"{name}.attention.qkv"), [rows, self.length, 3 * width])
        q, k, v = graph.ops("Split", qkv, count=3, axis=2, num_outputs=3)
        if self.options.lowering == "cpu":
            q, k = self._rotate(q, heads), self._rotate(k, heads)
            out = graph.op("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=heads, scale=size**-0.5)
        else:
            q, k, v = (
                graph.op("Transpose", graph.reshape(part, [rows, self.length, heads, size]), perm=[0, 2, 1, 3])
                for part in (q, k, v)
            )
            out = graph.op("Attention", self._rotate(q), self._rotate(k), v, scale=size**-0.5)
            out = graph.op("Transpose", out, perm=[0, 2, 1, 3])
        return graph.reshape(out, [-1, width])

    def _rotate(self, value: str, heads: int | None = None) -> str:
        """Turn pairs (2k, 2k + 1), in float32; `heads` where they are folded into the width."""
        folded: dict[str, Any] = {} if heads is None else {"num_heads": heads}
        turned = self.graph.op(
            "RotaryEmbedding", self.write.widen(value), *self._rotary, self._positions, interleaved=1, **folded
        )
        return self.write.narrow(turned)
