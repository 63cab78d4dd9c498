"""Bytes that a pass must read, against the sizes of the tensors and of the files."""

from pathlib import Path

import numpy as np

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import pass_bytes, step_bytes


def test_step_bytes_are_weights_and_the_mean_valid_cache(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.graph(bundle.variant("cpu-fp32", "cpu"), 1)
    per_position = 2 * 2 * 4 * 32 * 4  # layers, k and v, rows, head, bytes
    positions = np.arange(2, 18)  # after the condition: 2 .. 17 valid
    expected = graph.weight_bytes + round(per_position * positions.mean())
    assert step_bytes(graph, bundle.autoregressive.blocks[1]) == expected
    assert pass_bytes(bundle.manifest, bundle.variant("cpu-fp32", "cpu"))[1] == expected


def test_a_pass_of_a_continuous_flow_reads_the_weights(continuous_bundle: Path) -> None:
    bundle = Bundle.open(continuous_bundle)
    for variant in bundle.manifest.variants:
        assert pass_bytes(bundle.manifest, variant) == {0: bundle.graph(variant, 0).weight_bytes}
