"""Traced functions on ONNX Runtime against PyTorch."""

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
from starflow.runtime.plain.errors import ExportError


def test_a_function_that_writes_into_its_tensors(tmp_path: Path) -> None:
    """ONNX has no operator that does, not even into what another tensor is a view of."""

    def function(model: nn.Module, x: Tensor) -> Tensor:
        hidden: Tensor = model(x)
        view = hidden[:, 1:]
        hidden.mul_(2)
        view[:, 0] += 3
        return hidden + view.sum()

    model, x = nn.Linear(4, 3), torch.linspace(-1, 1, 8).view(2, 4)
    found, expected = _both(tmp_path, model, function, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("writes", [False, True])
def test_tensors_made_of_numbers_are_constants(tmp_path: Path, *, writes: bool) -> None:
    """Some releases of Transformers make their mask out of `torch.tensor(0.0)`. PyTorch traces it as a real tensor among fake ones."""

    def function(model: nn.Module, x: Tensor) -> Tensor:
        hidden: Tensor = torch.where(x > 0, torch.tensor(0.5), model(x))
        if writes:  # is traced twice
            hidden.mul_(torch.tensor(2.0))
        return hidden * torch.tensor([1.0, 2.0, 3.0, 4.0]) - torch.tensor([[5.0], [6.0]])

    model, x = nn.Linear(4, 4), torch.linspace(-1, 1, 8).view(2, 4)
    found, expected = _both(tmp_path, model, function, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("derivative", [False, True])
def test_a_layer_norm_is_one_operator_unless_a_derivative_reads_its_statistics(
    tmp_path: Path, *, derivative: bool
) -> None:
    """TensorRT's operator has one output, so a norm with statistics is written out."""

    def function(model: nn.Module, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: model(x).square().sum())(x) if derivative else model(x)

    norm = nn.LayerNorm(4)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 3))
    found, expected = _both(tmp_path, model, function, torch.linspace(-1, 1, 8).view(2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    nodes = onnx.load(tmp_path / "traced.onnx", load_external_data=False).graph.node
    norms = [len(node.output) for node in nodes if node.op_type == "LayerNormalization"]
    assert norms == ([] if derivative else [1])


def test_what_cannot_be_traced_is_one_line_that_says_which_releases_can() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(model(x))  # ONNX has no such operator

    with pytest.raises(ExportError, match=r"^odd: .*bessel_j0.* torch \d.*; known to work: torch 2") as raised:
        trace("odd", nn.Linear(4, 4), function, {"x": torch.zeros(2, 4)}, "y")
    assert isinstance(raised.value.__cause__, torch.onnx.OnnxExporterError)  # --debug shows it


def _both(
    folder: Path, model: nn.Module, function: Callable[[nn.Module, Tensor], Tensor], x: Tensor
) -> tuple[NDArray, NDArray]:
    """What ONNX Runtime makes of the traced function, and what PyTorch does."""
    with torch.no_grad():
        expected = function(model, x).numpy()
        tensors = {name: value.numpy for name, value in model.state_dict().items()}
    with WeightFile(folder / "weights.safetensors") as file:
        graph = trace("traced", model, function, {"x": x}, "y").over(SharedWeights(tensors, file, file.path.name))
    onnx.save(graph, folder / "traced.onnx")
    session = onnxruntime.InferenceSession(folder / "traced.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x.numpy()})[0]), expected
