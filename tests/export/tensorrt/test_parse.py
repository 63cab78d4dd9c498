"""Parsing: what comes back, and errors that name the node."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.backends.tensorrt.messages import readable
from starflow.runtime.plain.errors import ExportError
from tests.export.tensorrt.interpreter.onnx_graphs import parse, write_graph

pytest.importorskip("tensorrt_rtx")

X = {"x": np.ones((2, 3, 3), np.float32)}


def test_a_step_graph_parses_strongly_typed(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tiny_bundle / "graphs" / "block0.portable-fp16.onnx"
    parsed = parse_graph(load_flavour("tensorrt-rtx"), path, 0)
    trt, network = parsed.flavour.trt, parsed.network
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert {network.get_input(index).dtype for index in range(network.num_inputs)} >= {
        trt.float16,
        trt.float32,
        trt.int64,
    }
    assert capfd.readouterr() == ("", "")  # what TensorRT says is kept, not printed
    assert any("Int64 binding" in text for _, text in parsed.log.entries)


def test_an_unsupported_operator_is_named(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx", [helper.make_node("Det", ["x"], ["y"], name="layer3/Det")], X, ["y"])
    with pytest.raises(ExportError) as caught:
        parse(path, 4)
    assert "flow block 4" in str(caught.value)
    assert "node layer3/Det (Det): unsupported node" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_tensorrt_says_is_quoted(tmp_path: Path) -> None:
    node = helper.make_node(
        "Attention", ["x", "x", "x"], ["y", "key", "value"], name="layer3/Attention", q_num_heads=1, kv_num_heads=1
    )
    path = write_graph(tmp_path / "g.onnx", [node], X, ["y"])
    with pytest.raises(ExportError, match=r"layer3/Attention \(Attention\): .*one output"):
        parse(path)


def test_mixed_types_are_refused(tmp_path: Path) -> None:
    """A strongly typed network has no implicit casts; ONNX would refuse it too, but a parser need not."""
    inputs = X | {"h": np.ones((2, 3, 3), np.float16)}
    node = helper.make_node("Where", ["c", "x", "h"], ["y"], name="layer3/Where")
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in (inputs | {"c": np.ones((2, 3, 3), bool)}).items()
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 3, 3))],
    )
    path = tmp_path / "g.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()
    )
    with pytest.raises(ExportError, match=r"node layer3/Where \(Where\)"):
        parse(path)


def test_the_cpu_lowering_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ExportError, match=r"GroupQueryAttention.*only portable graphs"):
        parse(tiny_bundle / "graphs" / "block0.cpu-fp32.onnx", 0)


@pytest.mark.parametrize("content", [None, b"rubbish" * 100])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "g.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"g.onnx: tensorrt-rtx cannot read the file") as caught:
        parse(path)
    assert "\n" not in str(caught.value)


def test_messages_lose_what_only_nvidia_can_use() -> None:
    said = (
        "Invalid Node - layer3/Add\nITensor::getDimensions: Error Code 4: API Usage Error (layer3/Add: types differ. "
        "In validateTypes at /_src/optimizer/node.cpp:40)\n[checkMacros.cpp::catchCudaError::250] Error Code 1: "
        "Cuda Runtime (In catchCudaError at /_src/common/checkMacros.cpp:250 (cudaError 35: too old))"
    )
    assert readable(said) == "API Usage Error (layer3/Add: types differ.)"
