"""A quantised variant on disk: weights, graphs, and its entry in the manifest."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from starflow.calibration.weights.graph_edit import EditedGraph
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.export.bundle_folder import file_spec, write_graph
from starflow.export.graph_size import size_suffix
from starflow.export.onnx_graph.weight_file import WeightFile, refer
from starflow.runtime.autoregressive.students import student_of
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.bundle.bundle import Bundle, changing_manifest, replace_manifest
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.manifest import Quantization, Variant
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.atomic_write import atomic_file

Edit = Callable[[StepGraphWeights, Block], EditedGraph]
HEADER_ROOM = 1024  # bytes kept free for each tensor: the entries of its codes and its scales


class VariantWriter:
    """Writes the files of one variant under names that are free in the bundle, then adds it to the manifest.

    Until `publish` has replaced the manifest, the bundle is unchanged. The next writer deletes the files of one that stopped
    before that.

    Args:
        name: Name of the variant; a variant of that name is replaced.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self._bundle, self._name = bundle, name
        self._folder = bundle.folder / "graphs"
        self._stem, self._source = self._free_stem(), name

    def write(self, source: str, edit: Edit, precision: str, quantization: Quantization) -> list[Variant]:
        """Write weights and graphs of every shape and batch size; the manifest's entries, in the order of `Bundle.places`.

        Args:
            source: Name of the variant the graphs are edits of.
            edit: Turns the source's graph of a flow block into the new one; new weights of one name are the same everywhere.
            quantization: What was done, for the manifest.
        """
        self._source = source
        places = self._bundle.places()
        sources = [bundle.variant(source, "") for bundle in places]
        graphs = [
            (bundle, StepGraphWeights(bundle.path(spec.file)), spec.block)
            for bundle, variant in zip(places, sources, strict=True)
            for spec in variant.graphs
        ]
        edits = [(graph, partial(edit, graph, bundle.autoregressive.blocks[block])) for bundle, graph, block in graphs]
        described, edited = self._weights(self._stem, edits)
        written = [(*graph, *made) for graph, made in zip(graphs, edited, strict=True)]
        return [
            Variant.model_validate(
                {
                    "name": self._name,
                    "lowering": variant.lowering,
                    "precision": precision,
                    "weights": described,
                    "activation_peaks": variant.activation_peaks,
                    "quantization": quantization,
                    "graphs": tuple(
                        GraphSpec(block=block, **self._graph(f"block{block}", bundle, model), weight_bytes=read)
                        for place, _, block, model, read in written
                        if place is bundle
                    ),
                }
            )
            for bundle, variant in zip(places, sources, strict=True)
        ]

    def write_student(self, block: int, edit: Callable[[StepGraphWeights], EditedGraph]) -> list[NetworkSpec]:
        """Write the weights and graphs of a student of every shape and batch size, in the order of `Bundle.places`.

        Args:
            block: Its flow block.
            edit: Turns its graph in float32 into the new one, see `write`.
        """
        name, places = f"student{block}", self._bundle.places()
        graphs = [
            StepGraphWeights(place.path(student_of(place.autoregressive, block).network.file)) for place in places
        ]
        described, edited = self._weights(f"{self._stem}.{name}", [(graph, partial(edit, graph)) for graph in graphs])
        return [
            NetworkSpec(**self._graph(name, place, model), weights=described, weight_bytes=read)
            for place, (model, read) in zip(places, edited, strict=True)
        ]

    def _weights(
        self, stem: str, edits: Sequence[tuple[StepGraphWeights, Callable[[], EditedGraph]]]
    ) -> tuple[FileSpec, list[tuple[onnx.ModelProto, int]]]:
        """Write a weight file for edited graphs; the file, and each graph over it with the bytes that it reads.

        Graphs are edited one by one, since each holds its new weights until they are written.
        """
        location = f"weights/{stem}.safetensors"
        path = self._folder / location
        known = {name for graph, _ in edits for name in graph.initializers}
        made: list[tuple[onnx.ModelProto, int]] = []
        with (
            atomic_file(path) as temporary,
            WeightFile(temporary, HEADER_ROOM * (len(known) + 64 * len(self._bundle.places()))) as file,
        ):
            for _, edit in edits:
                edited = edit()
                read = _point_into(edited, file, location, self._folder)
                made.append((edited.model, read))
        return file_spec(path, self._bundle.folder), made

    def publish(self, variants: Sequence[Variant]) -> AutoregressiveManifest:
        """Put the variant into the manifest, last in each list of variants; plans made for one of that name go with it."""
        with changing_manifest(self._bundle, self._source) as manifest:
            whole, changes = self._bundle.with_manifest(manifest), {}
            for bundle, variant in zip(whole.places(), variants, strict=True):
                present = bundle.autoregressive
                others = tuple(other for other in present.variants if other.name != variant.name)
                plans = tuple(plan for plan in present.plans if plan.variant != variant.name)
                changes[bundle.place] = {"variants": (*others, variant), "plans": plans}
            changed = whole.autoregressive.replaced(changes)
            replace_manifest(self._bundle, changed)
            self._remove_unnamed(changed)
        return changed

    def _graph(self, network: str, bundle: Bundle, model: onnx.ModelProto) -> dict[str, Any]:
        """Write a graph at one shape and batch size; see `write_graph`."""
        name = f"{network}.{self._stem}{size_suffix(*bundle.place)}.onnx"
        return write_graph(model, self._folder / name, self._bundle.folder)

    def _free_stem(self) -> str:
        """The variant's name, with a number where the bundle's present variant of that name has it."""
        # As it is now: while this process waited for its turn, another one may have added a variant of the name.
        taken = {file.path for file in Bundle.open(self._bundle.folder).files()}
        names = [self._name, *(f"{self._name}.{number}" for number in range(2, 100))]
        return next(name for name in names if f"graphs/weights/{name}.safetensors" not in taken)

    def _remove_unnamed(self, manifest: AutoregressiveManifest) -> None:
        named = {file.path for file in self._bundle.with_manifest(manifest).files()}
        stems = (self._name, f"{self._name}.[0-9]*", f"{self._name}.batch[0-9]*")
        names = ("block*.{}.onnx", "student*.{}.onnx", "weights/{}.safetensors", "weights/{}.student*.safetensors")
        for pattern in (name.format(stem) for name in names for stem in stems):
            for path in self._folder.glob(pattern):
                if path.relative_to(self._bundle.folder).as_posix() not in named:
                    path.unlink()


def _point_into(graph: EditedGraph, weights: WeightFile, location: str, folder: Path) -> int:
    """Store a graph's weights and let its initializers point at them; the bytes they have."""
    total = 0
    for tensor in graph.model.graph.initializer:
        new = graph.arrays.get(tensor.name)
        if new is None and not tensor.external_data:
            continue  # a small constant
        load = partial(numpy_helper.to_array, tensor, str(folder)) if new is None else partial(np.asarray, new.content)
        stored = weights.add(tensor.name, load)
        refer(tensor, stored, location)
        total += stored.length
    return total
