"""The step graph itself: one graph for steps, chunks and prefill, whatever the block is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.block_runner import BlockInputs, BlockRunner
from starflow.runtime.bundle.bundle import Bundle
from tests.models import class_config, features_config, write_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "published": {},
    "grouped queries": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 24, "use_qk_norm": True, "hf_style_rope": True},
    "gated, RMS norms": {"use_swiglu": True, "norm_type": "rms_norm", "use_post_norm": True, "use_bias": False},
    "no start token": {"sos": False, "use_softplus": False, "soft_clip": 2},
    "learned positions": {"rope": False},
    "all blocks conditioned": {"cond_top_only": False, "seq_order": "R2L", "num_blocks": 3, "layers_per_block": (1,)},
    "odd head": {"head_dim": 20, "num_heads": 2},
    "wide top": {"top_block_channels": 64, "layers_per_block": (1, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowering", ["portable", "cpu"])
def test_every_kind_of_block_equals_pytorch(tmp_path: Path, kind: str, lowering: str) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", class_config(**KINDS[kind]))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=2))
    with Sampler.open(tmp_path / "bundle", variant=f"{lowering}-fp32", threads=1) as sampler:
        noise = sampler.noise(2)
        found = sampler.generate(noise, [2, 6], guidance=1.0)
    expected = model.sample_labels(torch.from_numpy(noise), torch.tensor([2, 6]), 1.0).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("chunk", [2, 5, 16])
def test_a_chunk_of_right_inputs_equals_as_many_steps(tiny_bundle: Path, variant: str, chunk: int) -> None:
    """Feed the tokens single steps made: the chunk must return them, because each sees only those before it."""
    with Sampler.open(tiny_bundle, variant=variant, threads=1) as sampler:
        block = sampler.bundle.autoregressive.blocks[1]
        runner = sampler.backend.block_runner(1)
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((2, 16, 4), np.float32)
        condition = rng.standard_normal((4, 1, 11), np.float32)
        inputs = BlockInputs(noise, condition, None, {"guidance": np.array([0.5, 2.0], np.float32)})
        runner.prefill(inputs)
        runner.advance(16)
        tokens = runner.read()
        runner.prefill(inputs)
        assert isinstance(runner, BlockRunner)
        start = np.zeros((2, 1, 4), np.float32)  # the graph puts the start token in its place
        runner.store("previous", np.concatenate([start, tokens[:, : chunk - 1]], axis=1), chunk)
        runner.run(chunk)
        np.testing.assert_allclose(runner.fetch("x", chunk), tokens[:, :chunk], atol=2e-5)
        assert block.prefix == 1


def test_guidance_is_per_image(tiny_bundle: Path) -> None:
    with Sampler.open(tiny_bundle, threads=1) as sampler:
        runner = sampler.backend.block_runner(1)
        noise = np.repeat(np.random.default_rng(0).standard_normal((1, 16, 4), np.float32), 2, axis=0)
        condition = np.eye(11, dtype=np.float32)[[[3], [3], [10], [10]]]
        samples = {}
        for weights in ((0.0, 2.0), (2.0, 0.0)):
            runner.prefill(BlockInputs(noise, condition, None, {"guidance": np.array(weights, np.float32)}))
            runner.advance(16)
            samples[weights] = runner.read()
    np.testing.assert_allclose(samples[0.0, 2.0], samples[2.0, 0.0][::-1], atol=1e-5)
    assert np.abs(samples[0.0, 2.0][0] - samples[0.0, 2.0][1]).max() > 1e-2


def test_every_graph_passes_the_full_check_and_uses_known_operators(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for variant in bundle.manifest.variants:
        for graph in variant.graphs:
            path = tiny_bundle / graph.file.path
            onnx.checker.check_model(path, full_check=True)
            kinds = {(node.domain, node.op_type) for node in onnx.load(path, load_external_data=False).graph.node}
            if variant.lowering == "portable":
                assert {domain for domain, _ in kinds} == {""}
                assert ("", "TensorScatter") in kinds and ("", "Attention") in kinds
            else:
                assert ("com.microsoft", "GroupQueryAttention") in kinds and ("", "Attention") not in kinds


def test_portable_attention_never_leans_on_what_tensorrt_ignores(tiny_bundle: Path) -> None:
    """TensorRT's parser drops Attention's seventh input silently and reads is_causal as upper-left."""
    found = 0
    for path in (tiny_bundle / "graphs").glob("*.portable-*.onnx"):
        for node in onnx.load(path, load_external_data=False).graph.node:
            if node.op_type == "Attention":
                found += 1
                assert len(node.input) == 4 and node.input[3], "an explicit mask"
                assert not any(attribute.name == "is_causal" for attribute in node.attribute)
    assert found == 2 * 3  # fp32 and fp16, three layers


def test_a_cache_is_read_only_through_its_scatter(tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "graphs").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        for value in model.graph.input:
            if value.name.startswith(("key.", "value.", "samples")):
                readers = [node.op_type for node in model.graph.node if value.name in node.input]
                assert readers in (["TensorScatter"], ["GroupQueryAttention"])


def test_half_precision_graphs_keep_norms_and_update_in_float32(tiny_bundle: Path) -> None:
    model = onnx.shape_inference.infer_shapes_path
    path = tiny_bundle / "graphs" / "block1.portable-fp16.onnx"
    inferred = tiny_bundle / "graphs" / "inferred.tmp"
    model(path, inferred)
    graph = onnx.load(inferred, load_external_data=False).graph
    inferred.unlink()
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    wide = {"LayerNormalization", "RMSNormalization", "Softplus", "Tanh", "Div", "Exp", "RotaryEmbedding"}
    narrow = {"Gemm", "Attention", "Gelu"}
    seen = set()
    for node in graph.node:
        if node.op_type in wide | narrow:
            seen.add(node.op_type)
            expected = onnx.TensorProto.FLOAT if node.op_type in wide else onnx.TensorProto.FLOAT16
            assert types[node.output[0]] == expected, node.name
            assert types[node.input[0]] == expected, node.name
    assert seen >= {"LayerNormalization", "RMSNormalization", "Softplus", "Gemm", "Attention", "RotaryEmbedding"}
    assert types["x"] == types["samples_out"] == onnx.TensorProto.FLOAT
    assert types["key_out.0"] == onnx.TensorProto.FLOAT16


# Sizes: S tokens, and M tokens of the condition in portable graphs

SHAPE_INPUTS = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Unsqueeze": (1,)}


@pytest.fixture
def conditioned_graph(tmp_path: Path) -> Path:
    """The fp32 graph of a deep block behind three tokens of features, at batch 1."""
    write_checkpoint(tmp_path / "checkpoint", features_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions())
    return tmp_path / "bundle" / "graphs" / "block1.portable-fp32.onnx"


def inputs_at(session: onnxruntime.InferenceSession, position: int, given: int) -> dict[str, np.ndarray]:
    """Random inputs of a step, with `given` tokens of the condition."""
    rng = np.random.default_rng(0)
    sizes = {"S": 1, "M": given}
    values: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        shape = [sizes.get(size, size) for size in each.shape]
        values[each.name] = rng.standard_normal(shape, np.float32) if each.name != "position" else np.array([position])
    return values


def test_behind_the_condition_a_step_needs_none_of_it(conditioned_graph: Path) -> None:
    session = onnxruntime.InferenceSession(conditioned_graph, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    full = inputs_at(session, 3, 1)
    found = session.run(names, full | {"condition": full["condition"][:, :0]})
    for name, expected, value in zip(names, session.run(names, full), found, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=name)
    before = inputs_at(session, 2, 1)
    without = session.run(["x"], before | {"condition": before["condition"][:, :0]})[0]
    assert not np.array_equal(without, session.run(["x"], before)[0]), "at a position of the condition it matters"


@pytest.mark.parametrize("given", [0, 1])
def test_with_the_sizes_of_a_step_no_shape_arithmetic_is_left(conditioned_graph: Path, given: int) -> None:
    """What computes shapes would run on the host, and the device would wait for it in every step."""
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("S", 1)
    options.add_free_dimension_override_by_name("M", given)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(conditioned_graph.with_name("step.onnx"))
    options.log_severity_level = 3  # it warns that the file may not run elsewhere
    onnxruntime.InferenceSession(conditioned_graph, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    stored = {value.name for value in graph.initializer}
    assert [node.name for node in graph.node if node.op_type in ("Shape", "Size", "ConstantOfShape", "Range")] == []
    computed = [
        node.name
        for node in graph.node
        for index in SHAPE_INPUTS.get(node.op_type, ())
        if index < len(node.input) and node.input[index] and node.input[index] not in stored
    ]
    assert computed == []
