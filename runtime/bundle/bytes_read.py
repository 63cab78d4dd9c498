"""Bytes that the network of a flow must read from memory, however fast it computes."""

import numpy as np

from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.bundle.graph_spec import GraphSpec, tensor_bytes
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest


def cache_bytes(graph: GraphSpec) -> int:
    """Bytes of all caches of a block."""
    return sum(tensor_bytes(spec) for spec in graph.inputs if spec.role == "cache")


def step_bytes(graph: GraphSpec, block: Block) -> int:
    """Bytes one step reads at least: all weights, and the caches up to the mean position of the tokens."""
    valid = float(np.mean(np.arange(block.prefix, block.capacity) + 1))
    caches = [spec for spec in graph.inputs if spec.role == "cache"]
    return graph.weight_bytes + round(sum(valid * tensor_bytes(spec) / int(spec.shape[2]) for spec in caches))


def pass_bytes(manifest: Manifest, variant: Variant) -> dict[int, int]:
    """Bytes that a pass of each flow block reads at least: a step, or all weights of a continuous flow, which is block 0.

    Args:
        manifest: At one shape and one batch size.
        variant: One of its variants.
    """
    if isinstance(manifest, AutoregressiveManifest):
        return {graph.block: step_bytes(graph, manifest.blocks[graph.block]) for graph in variant.graphs}
    return {graph.block: graph.weight_bytes for graph in variant.graphs}
