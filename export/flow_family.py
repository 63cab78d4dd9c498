"""What an export asks of a family of flows: its own graphs, and its own part of the manifest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from starflow.export.bundle_folder import BundleFolder
from starflow.export.graph_size import GraphSize
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.traced_graph import TracedGraph
from starflow.export.precision import Precision
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import DenoiserKind


class FlowFamily(ABC):
    """A checkpoint's flow, as `BundleWriter` writes it.

    A further family is a subclass, made from (configuration, model on the meta device, tensors, options), and a row in
    `starflow.export.exporter.FAMILIES`. Making one raises ExportError or UsageError where the options do not fit the model.
    """

    conditioning: ConditioningSpec
    # Every shape of the bundle at every batch size. The default shape comes first, and of each shape the largest batch.
    sizes: Sequence[GraphSize]
    blocks: tuple[int, ...] = (0,)  # those that have a graph, in the order they are written
    own_patches = False  # whether flow blocks cut the data into patches of their own
    # Traces the denoiser of a kind at a size, by its place in `sizes`.
    denoisers: Mapping[DenoiserKind, Callable[[int], TracedGraph]] = {}

    @abstractmethod
    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, size: int
    ) -> onnx.ModelProto:
        """Write the graph of a block at a size, by its place in `sizes`."""

    @abstractmethod
    def activation_peaks(self) -> dict[str, float]:
        """Largest magnitude of any activation, by layer."""

    @abstractmethod
    def manifest(self, folder: BundleFolder, common: Mapping[str, Any], at_sizes: Sequence[dict[str, Any]]) -> Manifest:
        """The finished manifest.

        Args:
            folder: For files that only this family has.
            common: Fields that every manifest has once.
            at_sizes: Fields that every manifest has for each size: `variants`, `text`, `autoencoder`, `denoisers`; and
                `students` if there are any.
        """

    def by_shape(self, at_sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The fields of each shape. Those of its smaller batch sizes are under `batches`, without the text encoder of all."""
        shapes: list[dict[str, Any]] = []
        for size, fields in zip(self.sizes, at_sizes, strict=True):
            if size.batch == self.sizes[0].batch:
                shapes.append(fields | {"batches": ()})
            else:
                own = {name: value for name, value in fields.items() if name != "text"} | {"batch": size.batch}
                shapes[-1]["batches"] += (own,)
        return shapes
