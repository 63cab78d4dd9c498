"""Fused operators of traced graphs: on ONNX Runtime as in PyTorch, and only where they mean the same."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from starflow.export.onnx_graph.shared_weights import SharedWeights
from starflow.export.onnx_graph.traced_graph import trace
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.training.layers.rotary import rotate

Function = Callable[[nn.Module, Tensor], Tensor]


def traced(folder: Path, model: nn.Module, function: Function, x: Tensor) -> tuple[Counter[str], NDArray, NDArray]:
    """The operators of a traced function, what ONNX Runtime makes of x, and what PyTorch makes of it."""
    tensors = {name: value.detach().numpy for name, value in (*model.named_parameters(), *model.named_buffers())}
    with WeightFile(folder / "w.safetensors", 4096) as file:
        weights = SharedWeights(tensors, file, "w.safetensors")
        graph = trace("f", model, function, {"x": x}, "y").over(weights)
    onnx.save(graph, folder / "f.onnx")
    session = onnxruntime.InferenceSession(folder / "f.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = function(model, x).numpy()
    return Counter(node.op_type for node in graph.graph.node), session.run(None, {"x": x.numpy()})[0], expected


def test_a_product_reads_its_matrix_as_it_is_stored(tmp_path: Path) -> None:
    operators, found, expected = traced(tmp_path, nn.Linear(5, 3), lambda model, x: model(x), torch.randn(4, 5))
    assert operators == {"Gemm": 1}
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Angles(nn.Module):
    """Angles of six positions and four pairs, with another set for each image."""

    angles: Tensor

    def __init__(self, *leading: int) -> None:
        super().__init__()
        self.register_buffer("angles", torch.randn(*leading, 6, 4))

    def turned(self, x: Tensor, *, half: bool = False) -> Tensor:
        return rotate(x, self.angles.cos(), self.angles.sin(), half=half)


@pytest.mark.parametrize(
    ("leading", "half", "fused"),
    [((), False, 1), ((), True, 0), ((2, 1), False, 0)],
    ids=["pairs", "halves", "angles of each image"],
)
def test_rotary_positions(tmp_path: Path, leading: tuple[int, ...], half: bool, fused: int) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(model, Angles)
        return model.turned(x, half=half)

    operators, found, expected = traced(tmp_path, Angles(*leading), function, torch.randn(2, 3, 6, 8))
    assert operators["RotaryEmbedding"] == fused
    assert bool(operators["Sub"]) != bool(fused)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_difference_the_other_way_round_is_no_rotation(tmp_path: Path) -> None:
    """(u, v) -> (u cos + v sin, v cos - u sin) turns back."""

    def function(model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(model, Angles)
        u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = model.angles.cos(), model.angles.sin()
        return torch.stack([u * cos + v * sin, v * cos - u * sin], dim=-1).flatten(-2)

    operators, found, expected = traced(tmp_path, Angles(), function, torch.randn(2, 3, 6, 8))
    assert operators["RotaryEmbedding"] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
