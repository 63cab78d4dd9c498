"""Key and value caches in 8 bits, for step graphs of the cpu lowering.

After weights of 8 bits, reading the caches is what a step waits for next. GroupQueryAttention keeps them as codes itself: with
a scale for each channel it rounds a token's keys and values when it writes them, and computes on codes.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from starflow.calibration.weights.graph_edit import EditedGraph
from starflow.runtime.bundle.autoregressive_manifest import Block

KEY, VALUE, KEY_SCALE, VALUE_SCALE = 3, 4, 12, 13  # positions among GroupQueryAttention's inputs
LARGEST_CODE = 127


def quantize_caches(edited: EditedGraph, block: Block, peaks: Mapping[str, NDArray], suffix: str = "") -> None:
    """Keep the caches of a step graph in 8 bits, one scale for each channel.

    Args:
        edited: The graph; changed in place.
        block: Its flow block. Its rows share scales, and the operator takes them for further heads.
        peaks: By name of a cache input, [kv_heads, head_size] float32: the largest magnitude seen in each channel, over all
            rows and positions.
        suffix: What tells the scales from those of graphs with other rows, over the same weights.
    """
    for node in edited.model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        inputs = list(node.input) + [""] * (VALUE_SCALE + 1 - len(node.input))
        for cache, scale in ((KEY, KEY_SCALE), (VALUE, VALUE_SCALE)):
            name = inputs[cache]
            steps = np.maximum(peaks[name], np.finfo(np.float32).tiny) / LARGEST_CODE
            by_head = np.tile(steps.reshape(-1), block.rows).astype(np.float32)
            inputs[scale] = edited.add_float(f"blocks.{block.index}.{name}.scales{suffix}", by_head)
        node.input[:] = inputs
        for attribute, kind in (
            ("k_quant_type", "PER_CHANNEL"),
            ("v_quant_type", "PER_CHANNEL"),
            ("kv_cache_bit_width", 8),
        ):
            node.attribute.append(helper.make_attribute(attribute, kind))
    for value in (*edited.model.graph.input, *edited.model.graph.output):
        name = value.name.replace("_out.", ".")
        if name in peaks:
            value.type.tensor_type.elem_type = TensorProto.INT8
