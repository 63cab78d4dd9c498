"""The step graph in the fused operators of ONNX Runtime's CUDA kernels: fewer kernels, each of which costs microseconds.

A layer is four products, the attention, and what is fused between them: the sum of the stream, a branch and its bias goes into the
norm that follows (SkipLayerNormalization), the bias of a hidden layer into its activation (BiasGelu, FastGelu). Norms sum in float32
inside the kernel; their scales have the variant's type. Products take no bias, which CUDA's Gemm would copy in a kernel of its own.
"""

from starflow.export.autoregressive.lowering import CudaLowering
from starflow.export.autoregressive.step_graph import StepGraph
from starflow.export.onnx_graph.builder import MICROSOFT
from starflow.export.onnx_graph.network_writer import EPSILON


class FusedStepGraph(StepGraph):
    """Writes the step graph of a block; see `StepGraph` for the arguments.

    A branch of a layer is not added to the stream where it ends, but by the norm that follows.
    """

    _branch: tuple[str, ...] = ()  # the branch that is to be added, and its bias where it has one

    def _layer(self, h: str, index: int, keys: str, values: str) -> tuple[str, str, str]:
        name, kind = f"attn_blocks.{index}", self.block.norm
        normed, h = self._add_and_norm(h, f"{name}.attention.norm", kind)
        qkv = self._linear(normed, f"{name}.attention.qkv")
        if isinstance(self.lowering, CudaLowering) and self.lowering.takes_packed:
            out, keys, values = self.lowering.attend_packed(qkv, keys, values)
        else:
            out, keys, values = self.lowering.attend(*self._split_heads(qkv, name), keys, values)
        self._branch_off(out, f"{name}.attention", "proj")
        normed, h = self._add_and_norm(h, f"{name}.mlp.norm", kind)
        if self.block.gated_mlp:
            gate = self._activated(normed, f"{name}.mlp.gate_proj", "FastGelu", approximate="tanh")
            hidden = self.graph.op("Mul", gate, self._linear(normed, f"{name}.mlp.up_proj"))
            self._branch_off(hidden, f"{name}.mlp", "down_proj")
        else:
            hidden = self._activated(normed, f"{name}.mlp.main.0", "BiasGelu")
            self._branch_off(hidden, f"{name}.mlp", "main.2")
        return h, keys, values

    def _raw(self, h: str) -> str:
        if self.block.final_norm:
            h, _ = self._add_and_norm(h, "final_norm", "rms_norm")
        else:
            for term in self._branch:
                h = self.graph.op("Add", h, term)
        return self.write.linear(h, "proj_out")

    def _branch_off(self, value: str, name: str, projection: str) -> None:
        """End a branch with its projection, and leave it to be added."""
        if self.block.post_norm:
            self._branch = (self.norm(self._linear(value, f"{name}.{projection}"), f"{name}.post_norm", "rms_norm"),)
        else:
            self._branch = (self._product(value, f"{name}.{projection}"), *self._bias(f"{name}.{projection}"))

    def _add_and_norm(self, h: str, name: str, kind: str) -> tuple[str, str]:
        """The norm of the stream plus the branch, and the sum."""
        if not self._branch:  # before the first layer
            return self.norm(h, name, kind), h
        branch, *bias = self._branch
        operator = "SkipLayerNormalization" if kind == "layer_norm" else "SkipSimplifiedLayerNormalization"
        terms = map(self.write.narrow, self.write.norm_terms(name, kind))
        normed, total = self.graph.ops(
            operator, branch, h, *terms, *bias,
            count=4, unused=(1, 2), domain=MICROSOFT, epsilon=EPSILON[kind],
        )  # fmt: skip
        return normed, total

    def _activated(self, value: str, name: str, operator: str, **otherwise: str) -> str:
        """A linear layer and its GELU; without a bias the standard operator, with the attributes in `otherwise`."""
        product, bias = self._product(value, name), self._bias(name)
        if not bias:
            return self.graph.op("Gelu", product, **otherwise)
        return self.graph.op(operator, product, *bias, domain=MICROSOFT)

    def _linear(self, value: str, name: str) -> str:
        """x W^T + b, the sum in a kernel of its own."""
        product = self._product(value, name)
        for bias in self._bias(name):
            product = self.graph.op("Add", product, bias)
        return product

    def _product(self, value: str, name: str) -> str:
        """x W^T on flat activations; W as the checkpoint has it, [out, in]."""
        return self.graph.op("FusedMatMul", value, self.write.weight(f"{name}.weight"), domain=MICROSOFT, transB=1)

    def _bias(self, name: str) -> tuple[str, ...]:
        """The bias of a linear layer that has one."""
        return (self.write.weight(f"{name}.bias"),) if self.weights.has(f"{name}.bias") else ()
