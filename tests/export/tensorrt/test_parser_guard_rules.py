"""Every rule of the parser guard on graphs of a few nodes, made by hand: what breaks it, and its nearest neighbour that does not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from starflow.export.tensorrt.parser_guard import Misreading, guard_graph, misreadings
from starflow.runtime.plain.errors import ExportError

FLOAT, INT64, INT32, BOOL, DOUBLE = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE,
)  # fmt: skip
CACHE = [2, 3, 8, 4]


def info(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def scatter(cache: str, new: str, out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("TensorScatter", [cache, new, "at"], [out], name=f"write {cache}", **attributes)


def attention(*inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Attention", list(inputs), ["y"], name="attend", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A step with caches k and v that are written at `at`, and whatever else is given."""
    usual = [
        info("q", FLOAT, [2, 3, "S", 4]), info("nk", FLOAT, [2, 3, "S", 4]), info("nv", FLOAT, [2, 3, "S", 4]),
        info("k", FLOAT, CACHE), info("v", FLOAT, CACHE), info("at", INT64, [2]), info("mask", BOOL, ["S", 8]),
    ]  # fmt: skip
    ends = [info("k2", FLOAT, CACHE), info("v2", FLOAT, CACHE), info("y", FLOAT, None)]
    graph = helper.make_graph(list(nodes), "step", [*usual, *inputs], [*ends, *outputs], initializer=list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 24) for domain in ("", "ai.onnx")])


def written(**attributes: Any) -> list[onnx.NodeProto]:
    return [scatter("k", "nk", "k2", **attributes), scatter("v", "nv", "v2")]


def found(*args: Any, **kwargs: Any) -> list[tuple[str, str]]:
    """Place and problem of everything that is found."""
    return [(each.node, each.problem) for each in misreadings(model(*args, **kwargs))]


GOOD = attention("q", "k2", "v2", "mask")


def test_a_step_as_it_should_be() -> None:
    assert found([*written(), GOOD]) == []
    assert found([*written(axis=-2, mode="linear"), GOOD]) == []


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"mode": "circular"}, "does not write in linear mode, the only one TensorRT has"),
        ({"axis": 1}, "writes along axis 1, TensorRT along -2"),
        ({"axis": 2}, "writes along axis 2, TensorRT along -2"),
        ({"axis": -1}, "writes along axis -1, TensorRT along -2"),
    ],
)
def test_how_a_cache_is_written(attributes: dict[str, Any], says: str) -> None:
    assert found([*written(**attributes), GOOD]) == [("write k", says)]


def test_lengths_that_are_ignored() -> None:
    lengths = info("n", INT64, [2])
    problem = "has nonpad_kv_seqlen (input 6), which TensorRT ignores: it attends to the unwritten cache"
    assert found([*written(), attention("q", "k2", "v2", "mask", "", "", "n")], [lengths]) == [("attend", problem)]
    assert found([*written(), attention("q", "k2", "v2", "mask", "", "", "")]) == []
    assert found([*written(), attention("q", "k2", "v2", "mask", "nk", "nv")]) == []


@pytest.mark.parametrize(
    ("keys", "values", "caught"),
    [("k2", "nv", True), ("nk", "v2", True), ("k2", "v2", True), ("nk", "nv", False), ("moved", "nv", True),
     ("mixed", "nv", True), ("summed", "nv", False)],
)  # fmt: skip
def test_causal_over_a_cache_however_it_was_moved(keys: str, values: str, caught: bool) -> None:
    nodes = [
        *written(),
        helper.make_node("Transpose", ["k2"], ["turned"], perm=[0, 1, 2, 3]),
        helper.make_node("Identity", ["turned"], ["moved"]),
        helper.make_node("Concat", ["nk", "moved"], ["mixed"], axis=2),
        helper.make_node("Relu", ["nk"], ["summed"]),
        attention("q", keys, values, is_causal=1),
    ]
    problem = "has is_causal over a cache, which TensorRT counts from the cache's start"
    assert found(nodes) == ([("attend", problem)] if caught else [])
    nodes[-1] = attention("q", keys, values, is_causal=0)
    assert found(nodes) == []


def test_causal_over_a_cache_before_its_update() -> None:
    """Both rules are broken: the reader races with the write, and the mask is counted wrongly."""
    assert [problem.split(",")[0] for _, problem in found([*written(), attention("q", "k", "v2", is_causal=1)])] == [
        "has is_causal over a cache",
        "reads the cache k outside its TensorScatter",
    ]
    early = [*written(), attention("q", "k", "nv", is_causal=1)]
    assert ("attend", "has is_causal over a cache, which TensorRT counts from the cache's start") in found(early)
    queries = [*written(), attention("k2", "nk", "nv", is_causal=1)]
    assert found(queries) == [], "keys and values are what is masked"


def test_a_cache_is_an_input_whose_update_is_an_output() -> None:
    inner = [helper.make_node("Relu", ["k"], ["inner"]), scatter("inner", "nk", "k2"), scatter("v", "nv", "v2"), GOOD]
    assert found(inner) == [("write inner", "updates inner, which is no input of the graph")]
    inner[2] = scatter("v", "nv", "v2", axis=1)
    assert [place for place, _ in found(inner)] == ["write inner", "write v"], "later caches are looked at, too"
    kept = [scatter("k", "nk", "kept"), scatter("v", "nv", "v2"), attention("q", "kept", "v2", "mask")]
    kept.append(helper.make_node("Relu", ["nk"], ["k2"]))
    assert found(kept) == [("write k", "its result kept is no output of the graph")]


def test_nobody_else_reads_or_returns_a_cache() -> None:
    race = "reads the cache k outside its TensorScatter, while TensorRT overwrites it"
    reader = helper.make_node("Relu", ["k"], ["r"], name="reader")
    assert found([*written(), GOOD, reader]) == [("reader", race)]
    other = scatter("k", "nk", "again")
    other.name = "again"
    second = "is one of several TensorScatter that update k"
    assert found([*written(), GOOD, other], outputs=[info("again", FLOAT, CACHE)]) == [
        ("again", second),
        ("write k", second),
    ]
    as_update = scatter("v", "k", "v2")  # the cache is what is written into the other one
    assert ("write v", race) in found([scatter("k", "nk", "k2"), as_update, GOOD])
    returned = "is also an output of the graph, while TensorRT overwrites it"
    assert found([*written(), GOOD], outputs=[info("k", FLOAT, CACHE)]) == [("cache k", returned)]


def branch(*nodes: onnx.NodeProto, out: str = "b") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [info(out, FLOAT, None)])


def test_branches_are_looked_into() -> None:
    then = branch(helper.make_node("Relu", ["v"], ["b"], name="inside"))
    otherwise = branch(helper.make_node("Relu", ["nv"], ["b"], name="harmless"))
    choice = helper.make_node("If", ["flag"], ["chosen"], name="if", then_branch=then, else_branch=otherwise)
    race = "reads the cache v outside its TensorScatter, while TensorRT overwrites it"
    assert found([*written(), GOOD, choice], [info("flag", BOOL, [])]) == [("inside", race)]


def test_operators_of_others_come_before_everything_else() -> None:
    foreign = helper.make_node("Gelu", ["q"], ["g"], name="gelu", domain="com.microsoft")
    assert found([*written(mode="circular"), foreign, GOOD]) == [("gelu", "is no standard ONNX operator")]
    spelled = helper.make_node("Relu", ["q"], ["g"], domain="ai.onnx")
    assert found([*written(), spelled, GOOD]) == []
    (misreading,) = misreadings(model([*written(), foreign, GOOD]))
    assert str(misreading) == "node gelu (com.microsoft.Gelu): is no standard ONNX operator; build a portable variant"


@pytest.mark.parametrize(
    ("kind", "shape", "says"),
    [
        (INT64, [], None),
        (INT64, [2], None),
        (INT64, ["S"], None),
        (INT32, [2, 2], None),
        (FLOAT, [2, 2], None),
        (INT64, [2, 2], "is int64 of rank 2; only int64 of rank 0 and 1 is for indices"),
        (DOUBLE, [], "is double of rank 0; only int64 of rank 0 and 1 is for indices"),
        (TensorProto.UINT64, [1], "is uint64 of rank 1; only int64 of rank 0 and 1 is for indices"),
        (TensorProto.COMPLEX128, [1], "is complex128 of rank 1; only int64 of rank 0 and 1 is for indices"),
    ],
)
def test_inputs_of_64_bits(kind: int, shape: Sequence[int | str], says: str | None) -> None:
    assert found([*written(), GOOD], [info("x", kind, shape)]) == ([] if says is None else [("input x", says)])


@pytest.mark.parametrize(("dtype", "caught"), [(np.float64, True), (np.float32, False), (np.int64, False)])
def test_constants_of_64_bits(dtype: Any, caught: bool) -> None:
    constant = numpy_helper.from_array(np.ones((2, 2), dtype), "c")
    expected = [("constant c", "is of 64 bits, TensorRT makes it float32")] if caught else []
    assert found([*written(), GOOD], constants=[constant]) == expected


def test_integers_made_of_indices_alone_are_indices() -> None:
    two = numpy_helper.from_array(np.array([2]), "two")
    nodes = [
        helper.make_node("Add", ["at", "two"], ["next"], name="add"),
        helper.make_node("Shape", ["q"], ["shape"], name="shape"),
        helper.make_node("Size", ["q"], ["size"], name="size"),
        helper.make_node("Mul", ["shape", "next"], ["both"], name="mul"),
        helper.make_node("Clip", ["next", "", "size"], ["clipped"], name="clip"),
    ]
    assert found([*written(), GOOD, *nodes], constants=[two]) == []


def test_integers_made_of_activations_are_not() -> None:
    two = numpy_helper.from_array(np.array([2]), "two")
    nodes = [
        helper.make_node("Cast", ["q"], ["rounded"], name="cast", to=INT64),
        helper.make_node("Add", ["rounded", "two"], ["sum"], name="add"),
        helper.make_node("ArgMax", ["q"], ["largest"], name="argmax"),
        helper.make_node("Cast", ["sum"], ["narrow"], name="narrow", to=INT32),
    ]
    problem = "makes int64 that is no index"
    assert found([*written(), GOOD, *nodes], constants=[two]) == [
        ("cast", problem),
        ("add", problem),
        ("argmax", problem),
    ]


def test_doubles_are_never_indices() -> None:
    nodes = [helper.make_node("Cast", ["at"], ["wide"], name="cast", to=DOUBLE)]
    assert found([*written(), GOOD, *nodes]) == [("cast", "makes double that is no index")]


def test_casts_inside_branches_are_seen() -> None:
    """Shape inference keeps to itself what it finds there."""
    inner = branch(helper.make_node("Cast", ["q"], ["b"], name="inside", to=DOUBLE))
    plain = branch(helper.make_node("Relu", ["nv"], ["b"]))
    choice = helper.make_node("If", ["flag"], ["chosen"], name="if", then_branch=inner, else_branch=plain)
    assert ("inside", "makes double that is no index") in found([*written(), GOOD, choice], [info("flag", BOOL, [])])


def test_messages_name_file_block_and_the_number_of_others(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    onnx.save(model([*written(), GOOD]), path)
    guard_graph(path)
    onnx.save(model([*written(mode="circular"), GOOD]), path)
    first = (
        r"node write k \(TensorScatter\): does not write in linear mode, the only one TensorRT has; use mode=\"linear\""
    )
    with pytest.raises(ExportError, match=rf"^{path}: {first}$"):
        guard_graph(path)
    with pytest.raises(ExportError, match=rf"^{path}: flow block 0: {first}$"):
        guard_graph(path, 0)
    onnx.save(model([*written(mode="circular", axis=1), GOOD], [info("x", DOUBLE, [])]), path)
    with pytest.raises(ExportError, match=rf"^{path}: {first} \(and 2 more\)$"):
        guard_graph(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match=rf"^{path}: cannot be read as ONNX \([^\n]*\); export the bundle again$"):
        guard_graph(path)


def test_nodes_without_a_name_are_known_by_their_outputs() -> None:
    nameless = scatter("k", "nk", "k2", axis=1)
    nameless.name = ""
    assert found([nameless, scatter("v", "nv", "v2"), GOOD])[0][0] == "k2"
    assert str(Misreading("input x", "", "is wide", "narrow it")) == "input x: is wide; narrow it"
