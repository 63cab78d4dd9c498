"""The profile of a step: what counts as what, that the parts are the whole, and that the profiler's cost comes off."""

import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import pytest

from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import step_bytes
from starflow.runtime.command_line import main
from starflow.runtime.diagnostics.operator_profile import (
    ATTENTION,
    BETWEEN,
    NORMS,
    OTHER,
    PRODUCTS,
    _by_kind,
    _operators,
    kind_of,
    profile_steps,
)
from starflow.runtime.plain.errors import BackendError
from tests.simulated_device.fixtures import Simulate


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("Gemm", PRODUCTS),
        ("FusedMatMul", PRODUCTS),
        ("MatMulNBits", PRODUCTS),
        ("GroupQueryAttention", ATTENTION),
        ("TensorScatter", ATTENTION),
        ("SkipSimplifiedLayerNormalization", NORMS),
        ("BiasGelu", NORMS),
        ("Reshape", OTHER),
    ],
)
def test_operators_have_a_kind(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_the_parts_of_a_step_are_the_whole(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sampler.open(tiny_bundle, variant="cpu-fp32", threads=1) as sampler:
        profile = profile_steps(sampler, guidance=1.0, bandwidth=1e9)
        manifest, graphs = sampler.bundle.autoregressive, sampler.variant.graphs
    assert list(tmp_path.iterdir()) == [], "the profiler's files are removed"
    kinds = {kind.kind: kind for kind in profile.kinds}
    assert list(kinds) == [PRODUCTS, ATTENTION, NORMS, OTHER, BETWEEN]
    assert sum(kind.milliseconds for kind in profile.kinds) == pytest.approx(profile.milliseconds)
    assert all(kind.milliseconds >= 0 for kind in profile.kinds)
    assert 0 < profile.milliseconds < profile.profiled_milliseconds
    read = sum(step_bytes(graph, manifest.blocks[graph.block]) for graph in graphs)
    assert profile.floor_milliseconds == pytest.approx(1000 * read / 1e9)
    weights = sum(graph.weight_bytes for graph in graphs)
    assert kinds[PRODUCTS].floor_milliseconds == pytest.approx(1000 * weights / 1e9)
    assert "GroupQueryAttention" in kinds[ATTENTION].operators and kinds[ATTENTION].milliseconds > 0
    written = {
        node.op_type
        for spec in graphs
        for node in onnx.load(tiny_bundle / spec.file.path, load_external_data=False).graph.node
    }
    seen = {name for kind in profile.kinds for name in kind.operators}
    assert len(seen & written) > len(written) / 2, f"{seen} are not the operators of the graphs"


def event(name: str, operator: str, microseconds: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator}}


def test_the_last_runs_count_and_the_cheapest_operator_is_the_profilers_cost(tmp_path: Path) -> None:
    run = {"cat": "Session", "name": "model_run", "dur": 900, "args": {}}
    warm_up = [event("a", "Gemm", 5000), run] * 3
    first = [event("a", "Gemm", 103), event("b", "Reshape", 3), event("c", "Gemm", 203), run]
    second = [event("a", "Gemm", 105), event("b", "Reshape", 5), event("c", "Gemm", 205), run]
    (tmp_path / "block0.json").write_text(json.dumps([*warm_up, *first, *second]))
    found = _operators(tmp_path, 2)
    # (103 + 203 + 105 + 205 - 4 times the mean Reshape, 4) over two steps
    assert found == pytest.approx({"Gemm": 0.300, "Reshape": 0.0})
    with pytest.raises(BackendError, match="noted 5 runs of more than 6"):
        _operators(tmp_path, 3)


def test_operators_never_take_longer_than_their_steps() -> None:
    """What lies between operators is the rest of a step; where nothing is left, operators are scaled to the step."""
    rest = {kind.kind: kind.milliseconds for kind in _by_kind({"Gemm": 3.0, "Add": 1.0}, 5.0, {})}
    assert rest == {PRODUCTS: 3.0, ATTENTION: 0, NORMS: 0, OTHER: 1.0, BETWEEN: 1.0}
    scaled = {kind.kind: kind.milliseconds for kind in _by_kind({"Gemm": 3.0, "Add": 1.0}, 2.0, {})}
    assert scaled == {PRODUCTS: 1.5, ATTENTION: 0, NORMS: 0, OTHER: 0.5, BETWEEN: 0.0}


def test_an_engine_has_no_profile(tiny_engines: Bundle, simulate: Simulate, capsys: Any) -> None:
    simulate()
    assert main(["bench", str(tiny_engines.root), "--backend", "tensorrt", "--explain"]) == 2
    refused = capsys.readouterr()
    assert refused.out == "" and refused.err.count("\n") == 1
    assert "not available on backend tensorrt" in refused.err and "--backend onnxruntime" in refused.err
