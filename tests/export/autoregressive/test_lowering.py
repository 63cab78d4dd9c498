"""Every way to write a cached attention, run by ONNX Runtime against attention written out in NumPy."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from starflow.export.autoregressive.lowering import LOWERINGS, StepValues
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.weight_file import WeightFile

CAPACITY = 9


def case(**changes: Any) -> SimpleNamespace:
    usual = {"rows": 3, "heads": 4, "kv_heads": 2, "size": 16, "half": False, "rotary": True, "temperature": False}
    return SimpleNamespace(**(usual | {"dtype": np.float32} | changes))


CASES = {
    "rotary in the kernel": case(),
    "rotary in halves": case(half=True),
    "no rotary": case(rotary=False),
    "rotary outside of the kernel": case(size=8),
    "rotary outside of the kernel, in halves": case(size=8, half=True),
    "padded heads": case(size=12),
    "padded heads without rotary": case(size=10, rotary=False),
    "temperature": case(temperature=True),
    "one head of keys": case(kv_heads=1, heads=3, rows=3),
    "half precision": case(dtype=np.float16, temperature=True),
}


def build(name: str, given: SimpleNamespace, path: Path) -> tuple[onnx.ModelProto, Any]:
    """[rows, S, width] q, k and v, and caches -> attention's output, the same with tokens weighed, and the caches."""
    block: Any = SimpleNamespace(
        heads=given.heads, kv_heads=given.kv_heads, head_dim=given.size, half_rotation=given.half
    )
    geometry: Any = SimpleNamespace(rows=given.rows, capacity=CAPACITY)
    with WeightFile(path) as weights:
        graph = GraphBuilder("attention", weights, "w")
        lowering = LOWERINGS[name](graph, block, geometry, np.dtype(given.dtype))
        shape = lowering.cache_shape(block, geometry)
        widths = {"q": given.heads * given.size, "k": given.kv_heads * given.size, "v": given.kv_heads * given.size}
        values = [graph.input(n, given.dtype, [given.rows, "S", width]) for n, width in widths.items()]
        caches = [graph.input(n, given.dtype, shape) for n in ("keys", "values")]
        slots = lowering.slots(geometry)
        tables = [graph.input(n, np.float32, [slots, given.size // 2]) for n in ("cos", "sin")]
        step = StepValues(
            position=graph.input("position", np.int64, [1]),
            positions=graph.input("positions", np.int64, ["S"]),
            count=graph.input("count", np.int64, [1]),
            rotary=(tables[0], tables[1]) if given.rotary else None,
            inverse_temperature=graph.input("temperature", np.float32, [given.rows]) if given.temperature else None,
        )
        flat = [lowering.flatten(lowering.arrange(v), widths[n]) for n, v in zip(widths, values, strict=True)]
        lowering.begin(step)
        out, keys, cached = lowering.attend(flat[0], flat[1], flat[2], *caches)
        whole = lowering.unflatten(out, given.rows, widths["q"])
        weighed = graph.op("Mul", whole, lowering.per_token(graph.cast(step.positions, given.dtype)))
        summed = graph.op("ReduceSum", whole, graph.constant([lowering.row_axis], np.int64), keepdims=0)
        for value, output in (
            (lowering.arrange(whole), "out"), (lowering.arrange(weighed), "weighed"), (summed, "summed"),
            (keys, "keys_out"), (cached, "values_out"), (out, "flat"),
        ):  # fmt: skip
            graph.output(graph.op("Identity", value), output, given.dtype, [])
        model = graph.model({})
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model, shape


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, half: bool) -> np.ndarray:
    """[rows, heads, S, size], each pair of channels turned: neighbours, or a channel and the one half a head away."""
    size = x.shape[-1]
    first = np.arange(size // 2) if half else np.arange(0, size, 2)
    second = first + size // 2 if half else first + 1
    out = np.empty_like(x)
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[rows, S, heads * size] -> [rows, heads, S, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attention(given: SimpleNamespace, feed: dict[str, np.ndarray], position: int) -> tuple[np.ndarray, ...]:
    """The output [rows, S, width], and both caches [rows, kv_heads, capacity, size]."""
    wide = {name: array.astype(np.float64) for name, array in feed.items()}
    q, k, v = (split(wide[n], heads) for n, heads in (("q", given.heads), ("k", given.kv_heads), ("v", given.kv_heads)))
    count = q.shape[2]
    if given.rotary:
        angles = (wide[n][position : position + count] for n in ("cos", "sin"))
        cos, sin = angles
        q, k = rotated(q, cos, sin, given.half), rotated(k, cos, sin, given.half)
    if given.temperature:
        q = q * wide["temperature"][:, None, None, None]
    keys, values = wide["past_keys"].copy(), wide["past_values"].copy()
    keys[:, :, position : position + count], values[:, :, position : position + count] = k, v
    out = np.empty_like(q)
    for head in range(given.heads):
        group = head // (given.heads // given.kv_heads)
        for token in range(count):
            seen = position + token + 1
            scores = np.einsum("rd,rpd->rp", q[:, head, token], keys[:, group, :seen]) / given.size**0.5
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head, token] = np.einsum("rp,rpd->rd", weights, values[:, group, :seen])
    return out.transpose(0, 2, 1, 3).reshape(given.rows, count, -1), keys, values


@pytest.mark.parametrize(
    ("lowering", "name"),
    # cpu variants compute in float32 what float16 weights hold.
    [(lowering, name) for lowering in LOWERINGS for name in CASES if lowering != "cpu" or name != "half precision"],
)
def test_attention_over_a_cache(lowering: str, name: str, tmp_path: Path) -> None:
    given = CASES[name]
    model, shape = build(lowering, given, tmp_path / "w")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    draw = np.random.default_rng(0)
    slots = LOWERINGS[lowering].slots(SimpleNamespace(capacity=CAPACITY))  # type: ignore[arg-type]
    angles = draw.uniform(-3, 3, (slots, given.size // 2))
    runs = ((0, 1), (0, 4), (3, 1), (3, 5), (CAPACITY - 2, 2), (CAPACITY - 1, 1))
    for position, count in runs:
        if lowering == "cuda" and position and count > 1:
            continue  # takes several tokens from position 0 on only
        past = draw.standard_normal((2, given.rows, given.kv_heads, CAPACITY, given.size)).astype(given.dtype)
        padding = ((0, 0), (0, 0), (0, slots - CAPACITY), (0, shape[-1] - given.size))
        feed = {
            name: draw.standard_normal((given.rows, count, heads * given.size)).astype(given.dtype)
            for name, heads in (("q", given.heads), ("k", given.kv_heads), ("v", given.kv_heads))
        }
        feed |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        feed["temperature"] = np.linspace(0.5, 2, given.rows).astype(np.float32)
        steps = {
            "keys": np.pad(past[0], padding).reshape(shape),
            "values": np.pad(past[1], padding).reshape(shape),
            "position": np.array([position]),
            "positions": np.arange(position, position + count),
            "count": np.array([count]),
        }
        outputs = ["out", "weighed", "summed", "keys_out", "values_out", "flat"]
        found = session.run(outputs, {name: array for name, array in (feed | steps).items() if name in names})
        out, keys, values = attention(given, feed | {"past_keys": past[0], "past_values": past[1]}, position)
        tolerance = 1e-5 if given.dtype == np.float32 else 1e-2
        np.testing.assert_allclose(found[0], out, atol=tolerance, rtol=tolerance)
        weights = np.arange(position, position + count)[None, :, None]
        np.testing.assert_allclose(found[1], out * weights, atol=9 * tolerance, rtol=tolerance)
        np.testing.assert_allclose(found[2], out.sum(axis=0), atol=given.rows * tolerance, rtol=tolerance)
        assert found[5].shape == (given.rows * count, given.heads * given.size)
        for cache, expected in ((found[3], keys), (found[4], values)):
            cache = cache.reshape(given.rows, given.kv_heads, slots, -1)[:, :, : position + count, : given.size]
            np.testing.assert_allclose(cache, expected[:, :, : position + count], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_graph_holds_no_more_nodes_than_it_needs(lowering: str, name: str, tmp_path: Path) -> None:
    graph = build(lowering, CASES[name], tmp_path / "w")[0].graph
    used = {value for node in graph.node for value in node.input} | {value.name for value in graph.output}
    assert all(used.intersection(node.output) for node in graph.node), "a node whose result nothing reads"
    casts = [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT]
    assert CASES[name].dtype != np.float32 or len(casts) == 1, "that of positions, made here"
    turned = sum(node.op_type == "RotaryEmbedding" for node in graph.node)
    inside = lowering != "portable" and CASES[name].size == 16  # the attention kernel turns heads of this size itself
    assert turned == (2 if CASES[name].rotary and not inside else 0)


def test_what_the_rest_must_know_of_a_lowering() -> None:
    assert {n: (c.name, c.time_major, c.feeds_position) for n, c in LOWERINGS.items()} == {
        "portable": ("portable", False, True),
        "cpu": ("cpu", True, False),
        "cuda": ("cuda", False, True),
    }
    geometry: Any = SimpleNamespace(rows=3, capacity=7)
    for size, padded in ((8, 8), (9, 16), (16, 16), (20, 24)):
        block: Any = SimpleNamespace(kv_heads=2, head_dim=size)
        assert LOWERINGS["portable"].cache_shape(block, geometry) == [3, 2, 7, size]
        assert LOWERINGS["cpu"].cache_shape(block, geometry) == [1, 6, 7, padded]
        assert LOWERINGS["cuda"].cache_shape(block, geometry) == [3, 2, 8, padded]
