"""A bundle's folder while it is written: files as the manifest names them, and graphs that are checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from starflow.export.onnx_graph.network_weights import Tensors
from starflow.export.onnx_graph.shared_weights import SharedWeights
from starflow.export.onnx_graph.tensor_roles import graph_tensors
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.runtime.bundle.bundle import sha256
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.progress import Report

HEADER_ROOM = 1024  # bytes of a weight file's header for each of its tensors


def file_spec(path: Path, root: Path) -> FileSpec:
    """A file of the bundle at `root`, as its manifest names it."""
    return FileSpec(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))


def write_graph(model: onnx.ModelProto, path: Path, root: Path) -> dict[str, Any]:
    """Write a graph into the bundle at `root`, beside its weights, and check it; its `file`, `inputs` and `outputs`."""
    with atomic_file(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
    inputs, outputs = graph_tensors(model)
    return {"file": file_spec(path, root), "inputs": inputs, "outputs": outputs}


class BundleFolder:
    """The folder of a bundle under construction, empty at first; `report` is told of every one of `total` steps."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root, self.total = root, 0
        self._report, self._done = report, 0
        (root / "graphs").mkdir()

    def step(self, doing: str) -> None:
        """Report what is done next."""
        self._done += 1
        self._report(self._done, self.total, doing)

    def weights(self, name: str) -> Path:
        """Where the weight file of a name lies."""
        return self.root / "graphs" / "weights" / f"{name}.safetensors"

    def file(self, path: Path) -> FileSpec:
        """A finished file, as the manifest names it."""
        return file_spec(path, self.root)

    @contextmanager
    def shared_weights(self, name: str, tensors: Tensors, further: int = 64) -> Iterator[SharedWeights]:
        """An open weight file for `tensors` and a number of further ones."""
        path = self.weights(name)
        with WeightFile(path, header_room=HEADER_ROOM * (len(tensors) + further)) as file:
            yield SharedWeights(tensors, file, f"weights/{path.name}")

    def graph(self, model: onnx.ModelProto, name: str) -> dict[str, Any]:
        """Write a graph; see `write_graph`."""
        self.step(f"checking {name}.onnx")
        return write_graph(model, self.root / "graphs" / f"{name}.onnx", self.root)

    def network(self, model: onnx.ModelProto, weights: FileSpec, name: str) -> NetworkSpec:
        """Write a graph that runs once for a batch, in float32, over a finished weight file."""
        read = sum(4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.external_data)
        return NetworkSpec(**self.graph(model, name), weights=weights, weight_bytes=read)
