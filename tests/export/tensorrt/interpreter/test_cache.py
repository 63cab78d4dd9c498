"""The cache update: in place, row by row, and nothing past the end; and what the interpreter refuses around it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.runtime.plain.errors import ExportError
from tests.export.tensorrt.interpreter.onnx_graphs import parse, run_onnxruntime, write_graph

pytest.importorskip("tensorrt_rtx")

CAPACITY = 6


def arrays(count: int, index: list[int], dtype: type = np.float32) -> dict[str, NDArray]:
    rng = np.random.default_rng(0)
    return {
        "cache": rng.standard_normal((2, 3, CAPACITY, 4)).astype(dtype),
        "update": rng.standard_normal((2, 3, count, 4)).astype(dtype),
        "index": np.array(index),
    }


def scatter(cache: str = "cache", updated: str = "updated") -> NodeProto:
    return helper.make_node(
        "TensorScatter", [cache, "update", "index"], [updated], axis=-2, mode="linear", name="layer0/TensorScatter"
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "graph.onnx", [scatter()], arrays(2, [0, 0]), ["updated"])


def test_rows_are_written_in_place_at_their_own_index(graph: Path) -> None:
    given = arrays(2, [1, 4])
    expected = run_onnxruntime(graph, given)["updated"]
    memory = given["cache"]
    found = NetworkInterpreter(parse(graph)).run(given)["updated"]
    assert found is memory
    np.testing.assert_array_equal(memory, expected)


def test_nothing_is_written_past_the_end(graph: Path) -> None:
    given = arrays(2, [CAPACITY - 1, CAPACITY + 3])
    before = given["cache"].copy()
    NetworkInterpreter(parse(graph)).run(given)
    np.testing.assert_array_equal(given["cache"][0, :, -1], given["update"][0, :, 0])
    np.testing.assert_array_equal(given["cache"][0, :, :-1], before[0, :, :-1])
    np.testing.assert_array_equal(given["cache"][1], before[1])


def test_an_index_below_0_is_refused(graph: Path) -> None:
    with pytest.raises(ExportError, match=r"layer0/TensorScatter \(KV_CACHE_UPDATE\): write index -1"):
        NetworkInterpreter(parse(graph)).run(arrays(2, [0, -1]))


def test_a_cache_output_has_no_memory_of_its_own(graph: Path) -> None:
    interpreter, given = NetworkInterpreter(parse(graph)), arrays(2, [0, 0])
    assert interpreter.aliases == {"updated": "cache"}
    interpreter.run(given, {"updated": given["cache"][:]})  # another view of the same memory
    with pytest.raises(ExportError, match="output updated must have the memory of input cache"):
        interpreter.run(given, {"updated": np.empty_like(given["cache"])})


def test_later_layers_see_the_new_cache(tmp_path: Path) -> None:
    nodes = [scatter(), helper.make_node("Neg", ["updated"], ["y"])]
    given = arrays(2, [1, 4])
    path = write_graph(tmp_path / "graph.onnx", nodes, given, ["updated", "y"])
    found = NetworkInterpreter(parse(path)).run(given)
    np.testing.assert_array_equal(found["y"], -found["updated"])


def test_a_cache_of_16_bits_stays_one_where_the_interpreter_rounds(tmp_path: Path) -> None:
    given = arrays(2, [1, 4], np.float16)
    nodes = [scatter(), helper.make_node("Exp", ["updated"], ["y"])]
    path = write_graph(tmp_path / "graph.onnx", nodes, given, ["updated", "y"])
    expected = run_onnxruntime(path, given)
    found = NetworkInterpreter(parse(path), rounding=True).run(given)
    assert found["updated"] is given["cache"]
    np.testing.assert_array_equal(found["updated"], expected["updated"])
    np.testing.assert_allclose(found["y"].astype(np.float32), expected["y"].astype(np.float32), rtol=2e-3)


def test_a_read_that_races_with_the_update_is_refused(tmp_path: Path) -> None:
    nodes = [scatter(), helper.make_node("Neg", ["cache"], ["y"], name="layer0/Neg")]
    path = write_graph(tmp_path / "graph.onnx", nodes, arrays(2, [0, 0]), ["updated", "y"])
    with pytest.raises(ExportError, match=r"layer0/Neg \(UNARY\): it reads the cache cache"):
        NetworkInterpreter(parse(path))


def test_a_cache_that_is_no_input_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["cache"], ["negated"]), scatter("negated")]
    path = write_graph(tmp_path / "graph.onnx", nodes, arrays(2, [0, 0]), ["updated"])
    with pytest.raises(ExportError, match="not an input and an output of the network"):
        NetworkInterpreter(parse(path))


def test_a_cache_that_is_no_output_is_refused(tmp_path: Path) -> None:
    nodes = [scatter(), helper.make_node("Neg", ["updated"], ["y"])]
    path = write_graph(tmp_path / "graph.onnx", nodes, arrays(2, [0, 0]), ["y"])
    with pytest.raises(ExportError, match="not an input and an output of the network"):
        NetworkInterpreter(parse(path))
