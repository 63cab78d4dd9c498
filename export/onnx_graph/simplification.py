"""Take out of a traced graph what need not be computed: values that are known, steps that undo each other, and repetitions.

The passes are those of ONNX Script's `optimize`, which takes four times as long for the same graphs: the longest of its
rules compares every two nodes, and it has many for operators that traced networks do not contain.
"""

import numpy as np
import onnx_ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    add_0_rule,
    cast_cast_rule,
    collapse_slice_rule,
    div_by_1_rule,
    fuse_pad_into_conv_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    one_reshape_matmul_reshape_rule,
    reshape_reshape_rule,
    sub_0_rule,
    transpose_transpose_rule,
    two_reshapes_matmul_reshape_rule,
    unsqueeze_unsqueeze_rule,
)

from starflow.export.onnx_graph.fusions import FUSIONS

RULES = (
    *FUSIONS,
    *mul_by_1_rule.commute(),
    *add_0_rule.commute(),
    sub_0_rule,
    div_by_1_rule,
    two_reshapes_matmul_reshape_rule,
    one_reshape_matmul_reshape_rule,
    collapse_slice_rule,
    cast_cast_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    reshape_reshape_rule,
    no_op_transpose_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
    fuse_pad_into_conv_rule,
)

_TIDY_UP = Sequential(
    common.RemoveUnusedOpsetsPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


def simplify(model: onnx_ir.Model) -> None:
    """Simplify a graph in place; what it computes stays the same."""
    common.InlinePass()(model)
    with np.errstate(all="ignore"):  # an infinity that the graph selects away is no reason to warn
        for _ in range(2):  # what a rule leaves may be a constant
            fold_constants_ir(model, onnx_shape_inference=True)
            RewritePass(RULES)(model)
            common.RemoveUnusedNodesPass()(model)
    _TIDY_UP(model)
