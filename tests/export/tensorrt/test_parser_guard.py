"""Each way to write a step that TensorRT would misread is refused, on a real graph that is edited to hold it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from starflow.export.tensorrt.parser_guard import guard_graph, misreadings
from starflow.runtime.plain.errors import ExportError


@pytest.fixture
def graph(tiny_bundle: Path) -> onnx.ModelProto:
    """The step graph of the deep block: guided, with a prefix, two layers."""
    return onnx.load(tiny_bundle / "graphs" / "block1.portable-fp16.onnx", load_external_data=False)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.name == name)


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def append(model: onnx.ModelProto, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(operator, inputs, [output], name=f"added/{operator}", **attributes))


def make_output(model: onnx.ModelProto, name: str, kind: int = TensorProto.FLOAT16) -> None:
    model.graph.output.append(helper.make_tensor_value_info(name, kind, None))


def nonpad(model: onnx.ModelProto) -> None:
    attention = node(model, "layer1/Attention")
    lengths = constant(model, "lengths", np.ones(4, np.int64))
    attention.input[:] = [*attention.input[:3], "", "", "", lengths]


def causal(model: onnx.ModelProto) -> None:
    attention = node(model, "layer0/Attention")
    del attention.input[3:]
    attention.attribute.append(helper.make_attribute("is_causal", 1))


def causal_over_a_transposed_cache(model: onnx.ModelProto) -> None:
    """The keys pass two transpositions and a cast on the way from the cache; they are the cache all the same."""
    attention = node(model, "layer0/Attention")
    append(model, "Cast", [attention.input[1]], "moved.0", to=TensorProto.FLOAT16)
    append(model, "Transpose", ["moved.0"], "moved.1", perm=[1, 0, 2, 3])
    append(model, "Transpose", ["moved.1"], "moved.2", perm=[1, 0, 2, 3])
    fresh = node(model, "layer0/TensorScatter.1").input[1]
    attention.input[:] = [attention.input[0], "moved.2", fresh]
    attention.attribute.append(helper.make_attribute("is_causal", 1))


def read_cache(model: onnx.ModelProto) -> None:
    attention = node(model, "layer0/Attention")
    attention.input[2] = "value.0"


def read_cache_in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["key.1"], ["r"], name="branch/Relu")],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT16, None)],
    )
    flag = constant(model, "flag", np.array(True))
    append(model, "If", [flag], "chosen", then_branch=branch, else_branch=branch)
    make_output(model, "chosen")


def return_cache(model: onnx.ModelProto) -> None:
    make_output(model, "key.1")


def inner_cache(model: onnx.ModelProto) -> None:
    scatter = node(model, "layer1/TensorScatter")
    append(model, "Identity", ["key.1"], "inner")
    scatter.input[0] = "inner"


def unreturned_cache(model: onnx.ModelProto) -> None:
    kept = [each for each in model.graph.output if each.name != "value_out.1"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def shared_cache(model: onnx.ModelProto) -> None:
    node(model, "layer1/TensorScatter").input[0] = "key.0"


def set_attribute(model: onnx.ModelProto, name: str, value: object) -> None:
    scatter = node(model, "layer1/TensorScatter.1")
    kept = [each for each in scatter.attribute if each.name != name]
    del scatter.attribute[:]
    scatter.attribute.extend([*kept, helper.make_attribute(name, value)])


def circular(model: onnx.ModelProto) -> None:
    set_attribute(model, "mode", "circular")


def other_axis(model: onnx.ModelProto) -> None:
    set_attribute(model, "axis", 1)


def double_constant(model: onnx.ModelProto) -> None:
    constant(model, "precise", np.array([0.1]))


def double_cast(model: onnx.ModelProto) -> None:
    append(model, "Cast", ["x"], "wide", to=TensorProto.DOUBLE)
    append(model, "Mul", ["wide", "wide"], "square")
    make_output(model, "square", TensorProto.DOUBLE)


def integer_activations(model: onnx.ModelProto) -> None:
    append(model, "Cast", ["x"], "rounded", to=TensorProto.INT64)
    append(model, "Mul", ["rounded", "position"], "product")
    make_output(model, "product", TensorProto.INT64)


def integers_from_a_choice(model: onnx.ModelProto) -> None:
    append(model, "ArgMax", ["x"], "largest", axis=-1)
    make_output(model, "largest", TensorProto.INT64)


def integer_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("tokens", TensorProto.INT64, [2, "S"]))


def foreign(model: onnx.ModelProto) -> None:
    node(model, "layer0/Gelu").domain = "com.microsoft"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (nonpad, r"node layer1/Attention \(Attention\): has nonpad_kv_seqlen \(input 6\).*mask explicitly"),
        (causal, r"node layer0/Attention \(Attention\): has is_causal over a cache.*mask explicitly"),
        (causal_over_a_transposed_cache, r"node layer0/Attention \(Attention\): has is_causal over a cache"),
        (read_cache, r"node layer0/Attention \(Attention\): reads the cache value\.0 outside.*read value_out\.0"),
        (read_cache_in_a_branch, r"node branch/Relu \(Relu\): reads the cache key\.1 outside"),
        (return_cache, r"cache key\.1: is also an output of the graph.*return key_out\.1"),
        (inner_cache, r"node layer1/TensorScatter \(TensorScatter\): updates inner, which is no input"),
        (unreturned_cache, r"node layer1/TensorScatter\.1 \(TensorScatter\): its result value_out\.1 is no output"),
        (
            shared_cache,
            r"node layer1/TensorScatter \(TensorScatter\): is one of several TensorScatter that update key\.0",
        ),
        (circular, r"node layer1/TensorScatter\.1 \(TensorScatter\): does not write in linear mode"),
        (other_axis, r"node layer1/TensorScatter\.1 \(TensorScatter\): writes along axis 1, TensorRT along -2"),
        (double_constant, r"constant precise: is of 64 bits.*16 or 32 bits"),
        (double_cast, r"node added/Cast \(Cast\): makes double that is no index"),
        (integer_activations, r"node added/Cast \(Cast\): makes int64 that is no index"),
        (integers_from_a_choice, r"node added/ArgMax \(ArgMax\): makes int64 that is no index"),
        (integer_input, r"input tokens: is int64 of rank 2"),
        (foreign, r"node layer0/Gelu \(com\.microsoft\.Gelu\): is no standard ONNX operator; build a portable variant"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_tensorrt_would_misread(
    graph: onnx.ModelProto, tmp_path: Path, edit: Callable[[onnx.ModelProto], None], says: str
) -> None:
    edit(graph)
    path = tmp_path / "g.onnx"
    onnx.save(graph, path)
    with pytest.raises(ExportError, match=rf"^[^\n]*g\.onnx: flow block 1: {says}[^\n]*$"):
        guard_graph(path, 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("block", [0, 1])
def test_our_own_graphs_pass(tiny_bundle: Path, block: int, precision: str) -> None:
    guard_graph(tiny_bundle / "graphs" / f"block{block}.portable-{precision}.onnx", block)


def test_causal_attention_without_a_cache_passes(graph: onnx.ModelProto) -> None:
    """A text encoder is causal from its first token on, as TensorRT understands it."""
    attention = node(graph, "layer1/Attention")
    fresh = [node(graph, f"layer1/TensorScatter{suffix}").input[1] for suffix in ("", ".1")]
    attention.input[:] = [attention.input[0], *fresh]
    attention.attribute.append(helper.make_attribute("is_causal", 1))
    assert misreadings(graph) == []


def test_all_of_them_are_counted(graph: onnx.ModelProto, tmp_path: Path) -> None:
    nonpad(graph)
    circular(graph)
    double_constant(graph)
    assert len(misreadings(graph)) == 3
    onnx.save(graph, tmp_path / "g.onnx")
    with pytest.raises(ExportError, match=r"\(and 2 more\)$"):
        guard_graph(tmp_path / "g.onnx")


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        guard_graph(tmp_path / "g.onnx")
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        guard_graph(tmp_path / "missing.onnx")
