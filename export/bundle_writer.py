"""What writing a bundle takes, whatever is in it: variants over shared weights, graphs that are checked, where it comes from."""

import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np
import onnx

from starflow.export.autoregressive.lowering import LOWERINGS
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.tensor_roles import graph_tensors
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.runtime.bundle.bundle import sha256
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.manifest import ImageSpec, Provenance, Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import DenoiserKind, DenoiserSpec, NetworkSpec
from starflow.runtime.plain.progress import Report
from starflow.training.config import CheckpointConfig
from starflow.training.tensor_file import CheckpointTensors

if TYPE_CHECKING:
    from starflow.export.networks.autoencoder import AutoencoderExporter

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[Precision, np.dtype] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
TOOLS = ("starflow-compiler", "torch", "onnx", "numpy")


class BundleWriter(ABC):
    """Writes every file of a bundle into a folder, which the caller makes appear atomically.

    Args:
        folder: An empty folder.
        config: The checkpoint's.
        tensors: Its tensors.
        precisions: What to write.
        progress: Told of every graph.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        tensors: CheckpointTensors,
        precisions: tuple[Precision, ...],
        progress: Report,
    ) -> None:
        self.folder, self.config, self.tensors, self.precisions = folder, config, tensors, precisions
        self.shapes: tuple[object, ...] = ("",)
        self.variants: list[list[Variant]] = []
        self.denoisers: list[list[DenoiserSpec]] = []
        self.autoencoder: AutoencoderExporter | None = None
        self.other_steps = 0  # what a subclass reports with `step`
        self._progress, self._done = progress, 0

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """The blocks that have a graph, in the order they are written."""

    @abstractmethod
    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, shape: int
    ) -> onnx.ModelProto:
        """Write the graph of a block at a shape, by its place in `shapes`."""

    def build_denoisers(
        self, weights: WeightFile, location: str, precision: Precision, shape: int
    ) -> Mapping[DenoiserKind, onnx.ModelProto]:
        """Write the graphs of the denoisers over a precision's weights; only autoregressive flows have any."""
        return {}

    @abstractmethod
    def activation_peaks(self) -> dict[str, float]:
        """What float16 has to hold.

        Raises:
            ExportError: it does not.
        """

    @abstractmethod
    def manifest(self) -> Manifest:
        """The manifest over finished variants."""

    def run(self) -> Manifest:
        """Write everything."""
        (self.folder / "graphs").mkdir()
        self.variants, self.denoisers = [[] for _ in self.shapes], [[] for _ in self.shapes]
        for precision in self.precisions:
            self._write_precision(precision)
        manifest = self.manifest()
        (self.folder / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def file(self, path: Path) -> FileSpec:
        """A file of the bundle as the manifest names it."""
        return FileSpec(path=path.relative_to(self.folder).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))

    def network(self, model: onnx.ModelProto, weights: FileSpec, name: str) -> NetworkSpec:
        """Save and describe a graph that runs once for a batch, in float32, over a finished weight file."""
        path = self.folder / "graphs" / f"{name}.onnx"
        self.step(f"checking {path.name}")
        onnx.save(model, path)
        onnx.checker.check_model(path, full_check=True)
        inputs, outputs = graph_tensors(model)
        read = sum(4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.external_data)
        return NetworkSpec(file=self.file(path), weights=weights, inputs=inputs, outputs=outputs, weight_bytes=read)

    def image(self) -> ImageSpec:
        """How data become pixels."""
        latent, mode = self.config.latent, self.config.image.mode
        if self.autoencoder:
            mode = self.autoencoder.mode
        elif self.config.autoencoder:
            mode = "latent"
        return ImageSpec(mode=mode, scale=latent.scale, shift=latent.shift)

    def provenance(self) -> Provenance:
        """Where the bundle comes from."""
        return Provenance(
            checkpoint_sha256=self.tensors.sha256(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tools=_tool_versions(),
        )

    def step(self, doing: str) -> None:
        """Report what is done next."""
        self._done += 1
        graphs = len(self.shapes) * len(self.blocks) * sum(len(lowerings(precision)) for precision in self.precisions)
        self._progress(self._done, 2 * graphs + ("fp16" in self.precisions) + self.other_steps, doing)

    def suffix(self, shape: int) -> str:
        """What tells the graphs of a shape, by its place in `shapes`, from those of the default shape."""
        return f".{self.shapes[shape]}" if shape else ""

    def _write_precision(self, precision: Precision) -> None:
        """All lowerings of one precision at all shapes, over one weight file."""
        location = f"weights/{precision}.safetensors"
        path = self.folder / "graphs" / location
        graphs: dict[tuple[int, str], list[tuple[int, GraphBuilder, onnx.ModelProto]]] = {}
        denoisers: list[tuple[int, DenoiserKind, onnx.ModelProto]] = []
        with WeightFile(path, header_room=1024 * (len(self.tensors) + 48 + 16 * len(self.shapes))) as weights:
            for shape in range(len(self.shapes)):
                for block in self.blocks:
                    for lowering in lowerings(precision):
                        name = f"block{block}.{lowering}-{precision}{self.suffix(shape)}"
                        self.step(name)
                        graph = GraphBuilder(name, weights, location)
                        model = self.build_graph(graph, block, lowering, precision, shape)
                        graphs.setdefault((shape, lowering), []).append((block, graph, model))
                made = self.build_denoisers(weights, location, precision, shape)
                denoisers += [(shape, kind, model) for kind, model in made.items()]
        file = self.file(path)
        for shape, kind, model in denoisers:
            network = self.network(model, file, f"{model.graph.name}.{precision}{self.suffix(shape)}")
            self.denoisers[shape].append(DenoiserSpec(kind=kind, precision=precision, network=network))
        peaks: Mapping[str, float] | None = None
        if precision == "fp16":
            self.step("checking activations")
            peaks = {name: float(f"{peak:.4g}") for name, peak in self.activation_peaks().items()}
        for (shape, lowering), entries in graphs.items():
            ordered = sorted(entries, key=lambda entry: entry[0])
            variant = {
                "name": f"{lowering}-{precision}",
                "lowering": lowering,
                "precision": precision,
                "weights": file,
                "activation_peaks": peaks,
                "graphs": tuple(self._write_graph(*entry, lowering, precision) for entry in ordered),
            }
            self.variants[shape].append(Variant.model_validate(variant))

    def _write_graph(
        self, block: int, graph: GraphBuilder, model: onnx.ModelProto, lowering: str, precision: Precision
    ) -> GraphSpec:
        path = self.folder / "graphs" / f"{graph.name}.onnx"
        self.step(f"checking {path.name}")
        onnx.save(model, path)
        onnx.checker.check_model(path, full_check=True)
        inputs, outputs = graph_tensors(model)
        wide = 4 if lowering == "cpu" else DTYPES[precision].itemsize
        read = sum(
            int(np.prod(t.shape)) * (wide if t.dtype == DTYPES[precision] else t.dtype.itemsize)
            for t in graph.used_weights.values()
        )
        return GraphSpec(block=block, file=self.file(path), inputs=inputs, outputs=outputs, weight_bytes=read)


def lowerings(precision: Precision) -> tuple[str, ...]:
    """The lowerings a precision is written in. bf16 is for engines: ONNX Runtime's CPU kernels do not compute in it."""
    return ("portable",) if precision == "bf16" else tuple(LOWERINGS)


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            versions[tool] = "source"
    return versions
