"""Operators that a traced graph spells out, and that ONNX, ONNX Runtime and TensorRT have whole: rules that ONNX Script lacks."""

from typing import Any

import numpy as np
import onnx_ir
from onnxscript.rewriter import MatchResult, RewriteRule, pattern


class _ProductWithTransposed(pattern.RewriteRuleClassBase):
    """x (Wᵀ) + b as the one product that transposes W itself, so that a weight is read as it is stored."""

    def pattern(self, op: Any, x: Any, matrix: Any, bias: Any) -> Any:
        return op.Gemm(x, op.Transpose(matrix, perm=[1, 0]), bias, alpha=1.0, beta=1.0, transA=0, transB=0)

    def rewrite(self, op: Any, x: Any, matrix: Any, bias: Any) -> Any:
        return op.Gemm(x, matrix, bias, transB=1)


class _RotaryPairs(pattern.RewriteRuleClassBase):
    """Rotary positions of neighbouring pairs (u, v), which `rotate` cuts out of [B, N, S, H], turns and puts together again."""

    def pattern(self, op: Any, x: Any, paired: Any, whole: Any, cos: Any, sin: Any) -> Any:
        pairs = op.Reshape(x, paired)
        u = op.Squeeze(op.Slice(pairs, [0], [1], [-1]), [-1])
        v = op.Squeeze(op.Slice(pairs, [1], [2], [-1]), [-1])
        turned = op.Sub(op.Mul(u, cos), op.Mul(v, sin)), op.Add(op.Mul(v, cos), op.Mul(u, sin))
        stacked = op.Concat(*(op.Unsqueeze(each, [-1]) for each in turned), axis=-1)
        return op.Reshape(stacked, whole)

    def check(self, op: Any, *_: Any, **values: Any) -> MatchResult:
        result, known = MatchResult(), {name: _constant(values[name]) for name in ("paired", "whole")}
        x, cos = values["x"].shape, values["cos"].shape
        if x is None or len(x) != 4 or known["whole"] != list(x) or known["paired"] != [*x[:3], x[3] // 2, 2]:
            return result.fail("is not of neighbours among the last of four axes")
        if cos is None or list(cos) != [x[2], x[3] // 2] or values["sin"].shape != cos:
            return result.fail("has other angles than one for each position and pair")
        return result

    def rewrite(self, op: Any, x: Any, cos: Any, sin: Any, **_: Any) -> Any:
        batch, _, length, _ = x.shape
        positions = np.tile(np.arange(length, dtype=np.int64), (batch, 1))
        return op.RotaryEmbedding(x, cos, sin, op.Constant(value=onnx_ir.tensor(positions)), interleaved=1)


def _constant(value: onnx_ir.Value) -> list[int] | None:
    """The content of a small constant."""
    array = value.const_value
    return None if array is None else [int(each) for each in array.numpy().ravel()]


FUSIONS: tuple[RewriteRule, ...] = (_ProductWithTransposed.rule(), _RotaryPairs.rule())
