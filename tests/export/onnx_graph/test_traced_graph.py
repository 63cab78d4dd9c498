"""Traced functions on ONNX Runtime against PyTorch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from starflow.export.onnx_graph.shared_weights import SharedWeights
from starflow.export.onnx_graph.traced_graph import trace
from starflow.export.onnx_graph.weight_file import WeightFile


def test_a_function_that_writes_into_its_tensors(tmp_path: Path) -> None:
    """ONNX has no operator that does, not even into what another tensor is a view of."""

    def function(model: nn.Module, x: Tensor) -> Tensor:
        hidden: Tensor = model(x)
        view = hidden[:, 1:]
        hidden.mul_(2)
        view[:, 0] += 3
        return hidden + view.sum()

    model, x = nn.Linear(4, 3), torch.linspace(-1, 1, 8).view(2, 4)
    with torch.no_grad():
        expected = function(model, x)
        tensors = {name: value.numpy for name, value in model.state_dict().items()}
    with WeightFile(tmp_path / "weights.safetensors") as file:
        graph = trace("writes", model, function, {"x": x}, "y").over(SharedWeights(tensors, file, file.path.name))
    onnx.save(graph, tmp_path / "writes.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "writes.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["y"], {"x": x.numpy()})[0], expected, rtol=1e-5)
