"""Caches of 8 bits against those of float32, and what attention makes of them."""

from pathlib import Path

import numpy as np
import pytest

from starflow.calibration.weights.cache_edit import LARGEST_CODE, quantize_caches
from starflow.calibration.weights.graph_edit import edit_graph
from starflow.calibration.weights.layer_inputs import StepInputs
from starflow.calibration.weights.sample_error import candidate
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.traces.autoregressive import decode_given, sample_trace
from starflow.runtime.traces.case import draw_case
from starflow.training.config import CheckpointConfig
from tests.models import class_config, features_config, write_checkpoint


@pytest.mark.parametrize("config", [class_config(channels=64), features_config()], ids=["class", "features"])
def test_codes_are_the_floats_to_half_a_step(tmp_path: Path, config: CheckpointConfig) -> None:
    write_checkpoint(tmp_path / "checkpoint", config)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    bundle = Bundle.open(tmp_path / "bundle")
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as exact:
        trace = sample_trace(bundle, variant, exact, draw_case(bundle, 2, 0))
        for block in bundle.autoregressive.blocks:
            spec = bundle.graph(variant, block.index)
            weights = StepGraphWeights(bundle.root / spec.file.path)
            peaks = StepInputs(weights, spec, block, trace, threads=1).cache_peaks()
            edited = edit_graph(weights, "cpu", {}, {})
            quantize_caches(edited, block, peaks)
            given = (block, trace.inputs[block.index][0], trace.tokens[block.index])
            with (
                candidate(bundle, variant, {block.index: edited}) as small,
                OnnxRuntimeBackend(bundle, small, threads=1) as rounded,
            ):
                found = decode_given(rounded.block_runner(block.index), *given)
                expected = decode_given(exact.block_runner(block.index), *given)
                assert 1e-6 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02
                for name, peak in peaks.items():
                    if not name.endswith(".0"):
                        continue  # further layers are given what attention made of rounded caches
                    codes = rounded.block_runner(block.index).fetch(name)
                    assert codes.dtype == np.int8
                    steps = np.tile(peak, (block.rows, 1))[None, :, None] / LARGEST_CODE
                    floats = exact.block_runner(block.index).fetch(name)
                    assert (np.abs(codes * steps - floats) <= 0.501 * steps + 1e-6).all()
                    assert (
                        np.abs(codes).max(axis=(0, 2)).reshape(block.rows, *peak.shape).max(0)[peak > 0] == 127
                    ).all()
