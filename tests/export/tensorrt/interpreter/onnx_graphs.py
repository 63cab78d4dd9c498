"""Small ONNX graphs, run through ONNX Runtime and through parser and interpreter."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.parse import ParsedGraph, parse_graph
from starflow.runtime.backends.tensorrt.flavour import load_flavour

Arrays = Mapping[str, NDArray]


def parse(path: Path, block: int | None = None) -> ParsedGraph:
    """A graph through the parser that runs on any machine."""
    return parse_graph(load_flavour("tensorrt-rtx"), path, block)


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    outputs: Sequence[str],
    *,
    constants: Arrays | None = None,
    dynamic: Sequence[str] = (),
) -> Path:
    """Write a graph whose inputs have the types and sizes of arrays; those in `dynamic` have a dynamic second axis."""
    values = []
    for name, array in inputs.items():
        shape: list[int | str] = list(array.shape)
        if name in dynamic:
            shape[1] = "S"
        values.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    graph = helper.make_graph(
        nodes,
        "graph",
        values,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def run_onnxruntime(path: Path, inputs: Arrays) -> dict[str, NDArray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def assert_same(path: Path, inputs: Arrays, tolerance: float = 2e-6) -> None:
    """ONNX Runtime and the interpreter give the same outputs, types included."""
    expected = run_onnxruntime(path, inputs)
    found = NetworkInterpreter(parse(path)).run({name: array.copy() for name, array in inputs.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
