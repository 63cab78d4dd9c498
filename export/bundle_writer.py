"""What writing a bundle takes, whatever is in it: variants over shared weights, graphs that are checked, where it comes from."""

import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx

from starflow.export.graph_builder import GraphBuilder
from starflow.export.lowering import LOWERINGS
from starflow.export.tensor_roles import graph_tensors
from starflow.export.weight_file import WeightFile
from starflow.runtime.bundle import sha256
from starflow.runtime.graph_spec import FileSpec, GraphSpec
from starflow.runtime.manifest import ImageSpec, Provenance, Variant
from starflow.runtime.manifest_file import AnyManifest
from starflow.runtime.progress import Report
from starflow.training.checkpoint import CheckpointTensors
from starflow.training.config import CheckpointConfig

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
        self._progress, self._done = progress, 0

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """The blocks that have a graph, in the order they are written."""

    @abstractmethod
    def build_graph(self, graph: GraphBuilder, block: int, lowering: str, precision: Precision) -> onnx.ModelProto:
        """Write the graph of a block."""

    @abstractmethod
    def activation_peaks(self) -> dict[str, float]:
        """What float16 has to hold.

        Raises:
            ExportError: it does not.
        """

    @abstractmethod
    def manifest(self, variants: tuple[Variant, ...]) -> AnyManifest:
        """The manifest over finished variants."""

    def run(self) -> AnyManifest:
        """Write everything."""
        (self.folder / "graphs").mkdir()
        variants = [variant for precision in self.precisions for variant in self._write_precision(precision)]
        manifest = self.manifest(tuple(variants))
        (self.folder / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def file(self, path: Path) -> FileSpec:
        """A file of the bundle as the manifest names it."""
        return FileSpec(path=path.relative_to(self.folder).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))

    def image(self) -> ImageSpec:
        """How data become pixels."""
        latent = self.config.latent
        return ImageSpec(mode=self.config.image.mode, scale=latent.scale, shift=latent.shift)

    def provenance(self) -> Provenance:
        """Where the bundle comes from."""
        return Provenance(
            checkpoint_sha256=self.tensors.sha256(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tools=_tool_versions(),
        )

    def _step(self, doing: str) -> None:
        self._done += 1
        graphs = len(self.blocks) * sum(len(lowerings(precision)) for precision in self.precisions)
        self._progress(self._done, 2 * graphs + ("fp16" in self.precisions), doing)

    def _write_precision(self, precision: Precision) -> list[Variant]:
        """All lowerings of one precision, over one weight file."""
        location = f"weights/{precision}.safetensors"
        path = self.folder / "graphs" / location
        models: dict[str, list[tuple[int, GraphBuilder, onnx.ModelProto, Path]]] = {}
        with WeightFile(path, header_room=1024 * (len(self.tensors) + 64)) as weights:
            for block in self.blocks:
                for lowering in lowerings(precision):
                    self._step(f"flow block {block}, {lowering} {precision}")
                    name = f"block{block}.{lowering}-{precision}"
                    graph = GraphBuilder(name, weights, location)
                    model = self.build_graph(graph, block, lowering, precision)
                    target = self.folder / "graphs" / f"{name}.onnx"
                    models.setdefault(lowering, []).append((block, graph, model, target))
        file = self.file(path)
        peaks: Mapping[str, float] | None = None
        if precision == "fp16":
            self._step("checking activations")
            peaks = {name: float(f"{peak:.4g}") for name, peak in self.activation_peaks().items()}
        return [
            Variant.model_validate(
                {
                    "name": f"{lowering}-{precision}",
                    "lowering": lowering,
                    "precision": precision,
                    "weights": file,
                    "activation_peaks": peaks,
                    "graphs": tuple(
                        self._write_graph(*entry, lowering, precision) for entry in sorted(entries, key=lambda e: e[0])
                    ),
                }
            )
            for lowering, entries in models.items()
        ]

    def _write_graph(
        self, block: int, graph: GraphBuilder, model: onnx.ModelProto, path: Path, lowering: str, precision: Precision
    ) -> GraphSpec:
        self._step(f"checking {path.name}")
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
