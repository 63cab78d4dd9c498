"""The step graph of a flow block: one ONNX graph for prefill, single steps and chunks.

It reads the previous tokens and the noise of S positions, runs the block's transformer against its caches, and returns
the S tokens x = z * sigma + mu. Everything per element happens inside: projections, rotary positions, norms, soft clip,
scale, guidance, affine update, and the write of the samples into the output sequence. `docs/bundle.md` is the contract.

Number types: weights, activations and caches have the variant's type; norms, rotary turn, scale, guidance, update and
positions are float32 (and int64 for indices).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from starflow.export.autoregressive.block_weights import BlockWeights
from starflow.export.autoregressive.geometry import StepGeometry
from starflow.export.autoregressive.lowering import LOWERINGS, Lowering, StepValues
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_writer import NetworkWriter
from starflow.export.onnx_graph.tensor_roles import CONDITION_TOKENS
from starflow.training.autoregressive.config import BlockConfig
from starflow.training.autoregressive.flow_block import SOFTPLUS_SHIFT

GuidanceRule = Literal["ratio", "linear"]


@dataclass(frozen=True)
class StepGraphOptions:
    """What a step graph is written for."""

    lowering: str  # `portable`, `cpu` or `cuda`
    # Type of weights, activations and caches; the cpu lowering computes in float32 whatever is stored.
    dtype: np.dtype
    guidance: GuidanceRule  # rule that joins the [conditional, null] halves, where the geometry has them
    attention_temperature: bool  # whether the graph takes the temperature of its attention as an input

    @property
    def compute_dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.lowering == "cpu" else self.dtype


class StepGraph:
    """Writes the step graph of a block, which is not an identity, into an empty builder over the variant's weight file."""

    def __init__(
        self,
        graph: GraphBuilder,
        block: BlockConfig,
        weights: BlockWeights,
        geometry: StepGeometry,
        options: StepGraphOptions,
    ) -> None:
        self.graph, self.block, self.weights, self.geometry, self.options = graph, block, weights, geometry, options
        self.write = NetworkWriter(graph, weights, options.dtype, options.compute_dtype)
        self.lowering: Lowering = LOWERINGS[options.lowering](graph, block, geometry, options.compute_dtype)

    def norm(self, value: str, name: str, kind: str) -> str:
        """LayerNorm or RMSNorm over the last axis, computed in float32."""
        write = self.write
        return write.narrow(write.layer_norm(value, name) if kind == "layer_norm" else write.rms_norm(value, name))

    def build(self) -> onnx.ModelProto:
        """The finished graph."""
        graph, block, geometry, lowering = self.graph, self.block, self.geometry, self.lowering
        batch, rows, dim, capacity = geometry.batch, geometry.rows, block.token_dim, geometry.capacity
        position = graph.input("position", np.int64, [1])
        previous = graph.input("previous", np.float32, [batch, "S", dim])
        noise = graph.input("noise", np.float32, [batch, capacity, dim])
        samples = graph.input("samples", np.float32, [batch, 1, capacity, dim])

        count = graph.op("Shape", previous, start=1, end=2)
        offsets = graph.op("Slice", graph.constant(np.arange(capacity), np.int64), graph.constant([0], np.int64), count)
        positions = graph.op("Add", position, offsets)
        temperature = None
        if self.options.attention_temperature:
            temperature = graph.input("inverse_temperature", np.float32, [rows])
        step = StepValues(position, positions, count, self._rotary_tables(), temperature)
        lowering.begin(step)

        h = self._embed(previous, step)
        caches = []
        shape, dtype = lowering.cache_shape(block, geometry), self.options.compute_dtype
        for index in range(block.layers):
            pair = (graph.input(f"key.{index}", dtype, shape), graph.input(f"value.{index}", dtype, shape))
            with graph.scope(f"layer{index}"):
                h, *updated = self._layer(h, index, *pair)
            caches.append(updated)

        with graph.scope("output"):
            x = self._update(h, noise, step)
            write = graph.op("Expand", position, graph.constant([batch], np.int64))
            unsqueezed = graph.op("Unsqueeze", x, graph.constant([1], np.int64))
            written = graph.op("TensorScatter", samples, unsqueezed, write, axis=-2, mode="linear")
        graph.output(x, "x", np.float32, [batch, "S", dim])
        graph.output(written, "samples_out", np.float32, [batch, 1, capacity, dim])
        if lowering.feeds_position:
            # From the last position and not from S: TensorRT copies a value made of shapes from the host in every run. A
            # slice and no Gather: the parser passes the -1 on, and TensorRT's Gather takes none below 0.
            bounds = (graph.constant([bound], np.int64) for bound in (-1, np.iinfo(np.int64).max, 0))
            last = graph.reshape(graph.op("Slice", positions, *bounds), [1])  # a size that TensorRT would not see
            graph.output(graph.op("Add", last, graph.constant([1], np.int64)), "position_next", np.int64, [1])
        for index, (keys, values) in enumerate(caches):
            graph.output(keys, f"key_out.{index}", dtype, shape)
            graph.output(values, f"value_out.{index}", dtype, shape)
        return graph.model({"starflow.block": str(block.index), "starflow.lowering": lowering.name})

    def _rotary_tables(self) -> tuple[str, str] | None:
        angles = self.weights.rotary_angles(self.geometry)
        if angles is None:
            return None
        name = self.weights.rotary_name(self.geometry)  # equal tables of different blocks are stored once
        more = self.lowering.slots(self.geometry) - len(angles)
        if more:
            name, angles = f"{name}+{more}", np.pad(angles, ((0, more), (0, 0)))
        return self.write.table(f"{name}.cos", np.cos(angles)), self.write.table(f"{name}.sin", np.sin(angles))

    def _embed(self, previous: str, step: StepValues) -> str:
        """Previous tokens (or the start token, or the condition) as flat hidden states of all rows."""
        graph, write, lowering = self.graph, self.write, self.lowering
        block, geometry = self.block, self.geometry
        batch, rows, prefix = geometry.batch, geometry.rows, geometry.prefix
        tokens = lowering.arrange(previous)
        if block.start_token:
            start = write.table(self.weights.full_name("sos_embed"), self.weights["sos_embed"])
            is_start = graph.op("Equal", step.positions, graph.constant([prefix], np.int64))
            tokens = graph.op("Where", lowering.per_token(is_start), start, tokens)
        h = write.linear(write.narrow(lowering.flatten(tokens, block.token_dim)), "proj_in")
        h = lowering.unflatten(h, batch, block.channels)
        if block.positions == "learned":
            table = write.table(
                f"{self.weights.full_name('pos_embed')}.ordered", self.weights.ordered_positions(geometry)
            )
            index = step.positions
            if prefix:
                shifted = graph.op("Sub", index, graph.constant([prefix], np.int64))
                index = graph.op("Max", shifted, graph.constant([0], np.int64))
            rows_of_table = graph.op("Gather", table, index, axis=0)  # [S, channels]
            rows_of_table = graph.reshape(
                rows_of_table, [-1, 1, block.channels] if lowering.time_major else [1, -1, block.channels]
            )
            h = graph.op("Add", h, write.narrow(rows_of_table))
        if geometry.guided:
            h = graph.op("Concat", h, h, axis=lowering.row_axis)
        if block.condition == "class":
            label = graph.input("label", np.int64, [rows])
            table = write.table(f"{self.weights.full_name('class_embed')}.with_mean", self.weights.class_table())
            vectors = write.narrow(graph.op("Gather", table, label, axis=0))
            shape = [1, rows, block.channels] if lowering.time_major else [rows, 1, block.channels]
            h = graph.op("Add", h, graph.reshape(vectors, shape))
        if prefix:
            given = CONDITION_TOKENS if lowering.may_lack_condition else "S"
            condition = graph.input("condition", np.float32, [rows, given, block.condition_width])
            c = write.narrow(lowering.flatten(lowering.arrange(condition), block.condition_width))
            if block.project_condition:
                c = write.linear(c, "proj_txt")
            c = lowering.unflatten(c, rows, block.channels)
            if lowering.may_lack_condition:
                c = self._lengthen(c, condition, step)
            is_condition = graph.op("Less", step.positions, graph.constant([prefix], np.int64))
            h = graph.op("Where", lowering.per_token(is_condition), c, h)
        return lowering.flatten(h, block.channels)

    def _lengthen(self, c: str, condition: str, step: StepValues) -> str:
        """The projected condition, M tokens in the layout's order, followed by zeros up to S tokens; M = S or 0."""
        graph = self.graph
        missing = graph.op("Sub", step.count, graph.op("Shape", condition, start=1, end=2))
        rows, channels = (graph.constant([size], np.int64) for size in (self.geometry.rows, self.block.channels))
        sizes = (missing, rows, channels) if self.lowering.time_major else (rows, missing, channels)
        zero = graph.constant([[[0]]], self.options.compute_dtype)
        zeros = graph.op("Expand", zero, graph.op("Concat", *sizes, axis=0))
        return graph.op("Concat", c, zeros, axis=1 - self.lowering.row_axis)

    def _layer(self, h: str, index: int, keys: str, values: str) -> tuple[str, str, str]:
        graph, write, block = self.graph, self.write, self.block
        name = f"attn_blocks.{index}"
        qkv = write.linear(self.norm(h, f"{name}.attention.norm", block.norm), f"{name}.attention.qkv")
        out, keys, values = self.lowering.attend(*self._split_heads(qkv, name), keys, values)
        out = write.linear(out, f"{name}.attention.proj")
        if block.post_norm:
            out = self.norm(out, f"{name}.attention.post_norm", "rms_norm")
        h = graph.op("Add", h, out)
        out = self._mlp(self.norm(h, f"{name}.mlp.norm", block.norm), f"{name}.mlp")
        if block.post_norm:
            out = self.norm(out, f"{name}.mlp.post_norm", "rms_norm")
        return graph.op("Add", h, out), keys, values

    def _split_heads(self, qkv: str, name: str) -> tuple[str, str, str]:
        """Flat q, k and v of a layer, before rotary."""
        block, size = self.block, self.block.head_dim
        widths = [block.heads * size, block.kv_heads * size, block.kv_heads * size]
        q, k, v = self.graph.ops("Split", qkv, self.graph.constant(widths, np.int64), count=3, axis=1)
        if block.qk_norm:
            q = self._norm_heads(q, f"{name}.attention.query_norm", block.heads)
            k = self._norm_heads(k, f"{name}.attention.key_norm", block.kv_heads)
        return q, k, v

    def _norm_heads(self, value: str, name: str, heads: int) -> str:
        split = self.graph.reshape(value, [-1, self.block.head_dim])
        return self.graph.reshape(self.norm(split, name, "rms_norm"), [-1, heads * self.block.head_dim])

    def _mlp(self, x: str, name: str) -> str:
        graph, write = self.graph, self.write
        if not self.block.gated_mlp:
            return write.linear(graph.op("Gelu", write.linear(x, f"{name}.main.0")), f"{name}.main.2")
        gate = graph.op("Gelu", write.linear(x, f"{name}.gate_proj"), approximate="tanh")
        return write.linear(graph.op("Mul", gate, write.linear(x, f"{name}.up_proj")), f"{name}.down_proj")

    def _update(self, h: str, noise: str, step: StepValues) -> str:
        """Final norm, output projection, soft clip, scale, guidance, x = z * sigma + mu: [B, S, D] float32."""
        graph, block, geometry = self.graph, self.block, self.geometry
        raw = self.write.widen(self._raw(h))
        raw = self.lowering.arrange(self.lowering.unflatten(raw, geometry.rows, block.output_dim))
        if block.soft_clip > 0:
            clip = graph.constant(block.soft_clip, np.float32)
            raw = graph.op("Mul", graph.op("Tanh", graph.op("Div", raw, clip)), clip)
        z = graph.op("Gather", noise, step.positions, axis=1)
        if block.scale == "unit":
            mu = self._guide_linear(raw, "shift", step) if geometry.guided else raw
            return graph.op("Add", z, mu)
        a, mu = graph.ops("Split", raw, graph.constant([block.token_dim] * 2, np.int64), count=2, axis=2)
        if geometry.guided and self.options.guidance == "ratio":
            sigma, mu = self._guide_by_ratio(self._sigma(a), mu)
        elif geometry.guided:
            a, mu = self._guide_linear(a, "scale", step), self._guide_linear(mu, "shift", step)
            sigma = self._sigma(a)
        else:
            sigma = self._sigma(a)
        return graph.op("Add", graph.op("Mul", z, sigma), mu)

    def _raw(self, h: str) -> str:
        """Final norm and output projection, flat in the compute type."""
        if self.block.final_norm:
            h = self.norm(h, "final_norm", "rms_norm")
        return self.write.linear(h, "proj_out")

    def _sigma(self, a: str) -> str:
        graph = self.graph
        if self.block.scale == "exp":
            return graph.op("Exp", a)
        return graph.op("Softplus", graph.op("Add", a, graph.constant(SOFTPLUS_SHIFT, np.float32)))

    def _halves(self, value: str) -> list[str]:
        return self.graph.ops("Split", value, count=2, axis=0, num_outputs=2)

    def _guide_by_ratio(self, sigma: str, mu: str) -> tuple[str, str]:
        """STARFlow: s = min(sigma_c / sigma_u, 1)^2, d = 1 + w - w s."""
        graph = self.graph
        weight = graph.reshape(graph.input("guidance", np.float32, [self.geometry.batch]), [-1, 1, 1])
        sigma_c, sigma_u = self._halves(sigma)
        mu_c, mu_u = self._halves(mu)
        one = graph.constant(1.0, np.float32)
        ratio = graph.op("Min", graph.op("Div", sigma_c, sigma_u), one)
        ws = graph.op("Mul", weight, graph.op("Mul", ratio, ratio))
        above = graph.op("Add", one, weight)
        d = graph.op("Sub", above, ws)
        mu = graph.op("Div", graph.op("Sub", graph.op("Mul", above, mu_c), graph.op("Mul", ws, mu_u)), d)
        return graph.op("Div", sigma_c, graph.op("Sqrt", d)), mu

    def _guide_linear(self, value: str, what: str, step: StepValues) -> str:
        """TARFlow: c + w_t (c - u), with w_t = w (1 + anneal (t / (T - 1) - 1)) for token t."""
        graph, geometry = self.graph, self.geometry
        weight = graph.reshape(graph.input(f"guidance_{what}", np.float32, [geometry.batch]), [-1, 1, 1])
        anneal = self._anneal(step)
        c, u = self._halves(value)
        return graph.op("Add", c, graph.op("Mul", graph.op("Mul", weight, anneal), graph.op("Sub", c, u)))

    def _anneal(self, step: StepValues) -> str:
        """[B, S, 1], once per graph."""
        if not hasattr(self, "_anneal_value"):
            graph, geometry = self.graph, self.geometry
            amount = graph.reshape(graph.input("guidance_anneal", np.float32, [geometry.batch]), [-1, 1, 1])
            first = geometry.first_token - geometry.prefix
            token = graph.op("Add", step.positions, graph.constant([first], np.int64))
            part = graph.op(
                "Div", graph.cast(token, np.float32), graph.constant(max(geometry.tokens - 1, 1), np.float32)
            )
            below = graph.op("Sub", graph.reshape(part, [1, -1, 1]), graph.constant(1.0, np.float32))
            self._anneal_value = graph.op("Add", graph.op("Mul", amount, below), graph.constant(1.0, np.float32))
        return self._anneal_value
