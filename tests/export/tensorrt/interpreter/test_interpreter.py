"""The interpreter's own duties: buffers, rounding, and saying what it cannot do."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from starflow.export.tensorrt.interpreter import interpreter as module
from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.interpreter.layers import NetworkLayer
from starflow.runtime.plain.errors import ExportError
from tests.export.tensorrt.interpreter.onnx_graphs import parse, run_onnxruntime, write_graph

pytest.importorskip("tensorrt_rtx")


def write(folder: Path, nodes: list, x: NDArray, outputs: list[str], **constants: NDArray) -> Path:
    return write_graph(folder / "graph.onnx", nodes, {"x": x}, outputs, constants=constants, dynamic=["x"])


def test_an_unknown_kind_of_layer_is_named(tmp_path: Path) -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], name="layer3/CumSum")
    path = write(tmp_path, [node], np.ones((2, 3), np.float32), ["y"], axis=np.array(1))
    with pytest.raises(ExportError, match=r"flow block 5: layer layer3/CumSum \(CUMULATIVE\): this kind of layer"):
        NetworkInterpreter(parse(path, 5))


def test_an_unknown_mode_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Selu", ["x"], ["y"], name="layer3/Selu")
    path = write(tmp_path, [node], np.ones((2, 3), np.float32), ["y"])
    with pytest.raises(ExportError, match=r"layer layer3/Selu \(ACTIVATION\): activation SELU"):
        NetworkInterpreter(parse(path))


def test_a_negative_index_is_refused_where_onnx_would_count_from_the_end(tmp_path: Path) -> None:
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = write(
        tmp_path, [helper.make_node("Gather", ["table", "x"], ["y"])], np.zeros((1, 1), np.int64), ["y"], table=table
    )
    interpreter = NetworkInterpreter(parse(path))
    assert interpreter.run({"x": np.array([[2]])})["y"].tolist() == [[[4, 5]]]
    for index in (-1, 3):
        with pytest.raises(ExportError, match=r"\(GATHER\): "):
            interpreter.run({"x": np.array([[index]])})


def test_inputs_and_outputs_are_checked(tmp_path: Path) -> None:
    interpreter = NetworkInterpreter(
        parse(write(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], np.ones((2, 3), np.float32), ["y"]))
    )
    good = np.ones((2, 5), np.float32)
    for bad in ({}, {"x": good.astype(np.float64)}, {"x": np.ones((3, 5), np.float32)}, {"x": good[0]}):
        with pytest.raises(ExportError, match=r"input x is .*, expected float32 \[2, -1\]"):
            interpreter.run(bad)
    with pytest.raises(ExportError, match="output y is float32"):
        interpreter.run({"x": good}, {"y": np.ones((2, 4), np.float32)})


def test_an_output_may_be_written_into_the_memory_of_an_input(tmp_path: Path) -> None:
    """A step's token feeds the next step's input: the write comes after everything that reads it."""
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["z"])]
    x = np.array([[1.0, 2.0]], np.float32)
    z = np.empty_like(x)
    NetworkInterpreter(parse(write(tmp_path, nodes, x, ["y", "z"]))).run({"x": x}, {"y": x, "z": z})
    assert x.tolist() == [[-1, -2]]
    np.testing.assert_allclose(z, np.exp([[1.0, 2.0]]), rtol=1e-6)


def test_one_network_runs_any_number_of_tokens(tmp_path: Path) -> None:
    interpreter = NetworkInterpreter(
        parse(write(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], np.ones((2, 3), np.float32), ["y"]))
    )
    for count in (1, 7, 3):
        x = np.full((2, count), 2, np.float32)
        np.testing.assert_array_equal(interpreter.run({"x": x})["y"], -x)


def test_a_kernel_that_contradicts_tensorrts_shapes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, [helper.make_node("Neg", ["x"], ["y"], name="n")], np.ones((2, 3), np.float32), ["y"])
    monkeypatch.setitem(module.KERNELS, "UNARY", lambda layer: lambda x: x[:1])
    with pytest.raises(ExportError, match=r"layer n \(UNARY\): got float32 \[1, 3\], TensorRT has float32 \[2, -1\]"):
        NetworkInterpreter(parse(path)).run({"x": np.ones((2, 3), np.float32)})


@pytest.fixture
def half_precision(tmp_path: Path) -> tuple[Path, NDArray]:
    """y = exp(x) x in float16."""
    x = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float16)
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Mul", ["e", "x"], ["y"])]
    return write(tmp_path, nodes, x, ["y"]), x


def test_rounding_is_the_networks(half_precision: tuple[Path, NDArray]) -> None:
    path, x = half_precision
    found = NetworkInterpreter(parse(path), rounding=True).run({"x": x})["y"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.exp(x.astype(np.float32)).astype(np.float16) * x)


def test_a_layer_rounds_its_result_and_nothing_within(tmp_path: Path) -> None:
    x = np.linspace(-1, 4, 500, dtype=np.float16)[None]
    path = write(tmp_path, [helper.make_node("Gelu", ["x"], ["y"], approximate="tanh")], x, ["y"])
    found = NetworkInterpreter(parse(path), rounding=True).run({"x": x})["y"]
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    assert (found != exact.astype(np.float16)).sum() <= 5  # halfway cases, decided by float32's last bit
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-6)


def test_without_rounding_everything_is_float32(half_precision: tuple[Path, NDArray]) -> None:
    path, x = half_precision
    wide = x.astype(np.float32)
    found = NetworkInterpreter(parse(path)).run({"x": wide})["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.exp(wide) * wide, rtol=1e-6)


def test_overflow_is_what_it_would_be_in_16_bits(tmp_path: Path) -> None:
    x = np.array([[300.0, 2.0]], np.float16)
    path = write(tmp_path, [helper.make_node("Mul", ["x", "x"], ["y"])], x, ["y"])
    assert NetworkInterpreter(parse(path), rounding=True).run({"x": x})["y"].tolist() == [[np.inf, 4.0]]


def test_values_can_be_observed_layer_by_layer(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["h"], name="first"), helper.make_node("Exp", ["h"], ["y"], name="second")]
    x = np.array([[-1.0]], np.float32)
    seen: list[tuple[str, bool]] = []

    def observe(layer: NetworkLayer, value: NDArray) -> None:
        seen.append((layer.name, bool(np.isfinite(value).all())))

    NetworkInterpreter(parse(write(tmp_path, nodes, x, ["y"]))).run({"x": x}, observe=observe)
    assert seen == [("first", False), ("second", False)]


def test_constants_are_folded(tmp_path: Path) -> None:
    """A chain over constants is computed when the network is read, once."""
    nodes = [helper.make_node("Exp", ["c"], ["e"], name="e"), helper.make_node("Add", ["x", "e"], ["y"], name="y")]
    x, c = np.ones((1, 2), np.float32), np.array([0.0, 1.0], np.float32)
    path = write(tmp_path, nodes, x, ["y"], c=c)
    names: list[str] = []
    found = NetworkInterpreter(parse(path)).run({"x": x}, observe=lambda layer, value: names.append(layer.name))
    assert names == ["y"]
    np.testing.assert_allclose(found["y"], run_onnxruntime(path, {"x": x})["y"], rtol=1e-6)
