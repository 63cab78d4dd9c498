"""Writes a bundle: a family's graphs over shared weights, the networks beside the flow, and where it comes from."""

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from starflow.export.activations import refuse_overflow
from starflow.export.bundle_folder import BundleFolder
from starflow.export.export_options import ExportOptions
from starflow.export.flow_family import FlowFamily
from starflow.export.graph_size import GraphSize, size_suffix
from starflow.export.networks.autoencoder import find_autoencoder
from starflow.export.networks.student import find_students
from starflow.export.networks.text_encoder import find_text_encoder, for_shape
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.traced_graph import TracedGraph, traced_weights
from starflow.export.precision import DTYPES, Precision, lowerings
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.bundle.manifest import ImageSpec, Lowering, Provenance, Variant, schema_version
from starflow.runtime.bundle.manifest_digest import record_digests
from starflow.runtime.bundle.manifest_file import Manifest, manifest_content
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserKind, DenoiserSpec
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.progress import Report
from starflow.training.config import CheckpointConfig
from starflow.training.tensor_file import CheckpointTensors

TOOLS = ("starflow-compiler", "torch", "onnx", "numpy")


class BundleWriter:
    """Writes every file of a bundle into `root`, an empty folder, which the caller makes appear atomically.

    `config` and `tensors` are the checkpoint's; `progress` is told of every graph.

    Raises:
        ExportError, UsageError: the options do not fit the model.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        tensors: CheckpointTensors,
        options: ExportOptions,
        family: FlowFamily,
        progress: Report,
    ) -> None:
        self._config, self._tensors, self._options, self._family = config, tensors, options, family
        lacking = [precision for precision in options.precisions if not self._lowerings(precision)]
        if lacking:
            raise UsageError(
                f"--precision {lacking[0]}: is written in the portable lowering only; add --lowering portable"
            )
        self._folder = BundleFolder(root, progress)
        self._suffixes = [_suffix(size, family.sizes[0]) for size in family.sizes]
        self._variants: list[list[Variant]] = [[] for _ in family.sizes]
        self._denoisers: list[list[DenoiserSpec]] = [[] for _ in family.sizes]
        self._traced: dict[tuple[int, DenoiserKind], TracedGraph] = {}
        checkpoint = tensors.path.parent
        self._text = find_text_encoder(
            checkpoint, config, family.conditioning, options.text_encoder, options.text_precision
        )
        self._autoencoder = find_autoencoder(checkpoint, config, family.sizes[0].data_shape, options.autoencoder)
        self._checkpoint_sha256 = tensors.sha256()
        self._students = find_students(options.students, self._checkpoint_sha256, family.sizes, family.conditioning)

    def run(self) -> Manifest:
        """Write everything; ExportError if weights or activations do not fit a precision."""
        self._folder.total = self._steps()
        for size, suffix in enumerate(self._suffixes):
            for kind, trace in self._family.denoisers.items():
                self._folder.step(f"{kind} denoiser{suffix}")
                self._traced[size, kind] = trace(size)
        for precision in self._options.precisions:
            self._write_precision(precision)
        autoencoders = self._write_autoencoders()
        sized = dict(zip(self._suffixes, self._family.sizes, strict=True))
        students = [each.write(self._folder, sized, self._family.conditioning) for each in self._students]
        text = self._text.write(self._folder) if self._text else None
        at_sizes = [
            {
                "variants": tuple(self._variants[place]),
                "text": for_shape(text, *size.data_shape[1:]) if text else None,
                "autoencoder": autoencoders[place],
                "denoisers": tuple(self._denoisers[place]),
                # Only autoregressive flows have them.
                **({"students": tuple(each[place] for each in students)} if students else {}),
            }
            for place, size in enumerate(self._family.sizes)
        ]
        manifest = self._family.manifest(self._folder, self._common(), at_sizes)
        content = manifest_content(manifest)
        (self._folder.root / "manifest.json").write_bytes(content)
        record_digests(self._folder.root, content)
        return manifest

    def _lowerings(self, precision: Precision) -> tuple[Lowering, ...]:
        return lowerings(precision, self._options.lowerings)

    def _steps(self) -> int:
        """How many steps there will be: whatever is written is checked, too."""
        sizes, precisions = len(self._suffixes), self._options.precisions
        graphs = sizes * len(self._family.blocks) * sum(len(self._lowerings(precision)) for precision in precisions)
        denoisers = sizes * len(self._family.denoisers) * (1 + len(precisions))
        autoencoders = sizes * self._autoencoder.steps if self._autoencoder else 0
        beside = denoisers + autoencoders + 2 * sizes * len(self._students) + 2 * bool(self._text)
        return 2 * graphs + ("fp16" in precisions) + beside

    def _common(self) -> Mapping[str, Any]:
        """The fields that every manifest has once."""
        mode, latent = self._config.image.mode, self._config.latent
        if self._autoencoder:
            mode = self._autoencoder.mode
        elif self._config.autoencoder:
            mode = "latent"
        return {
            "schema_version": schema_version(
                len(self._options.batches) > 1,
                self._family.own_patches,
                self._options.lowerings,
                students=bool(self._students),
            ),
            "image": ImageSpec(mode=mode, scale=latent.scale, shift=latent.shift),
            "conditioning": self._family.conditioning,
            "batch": self._options.batches[0],
            "provenance": Provenance(
                checkpoint_sha256=self._checkpoint_sha256,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                tools={tool: _version(tool) for tool in TOOLS},
            ),
        }

    def _write_autoencoders(self) -> Sequence[AutoencoderSpec | None]:
        """The autoencoder at each size, if there is one."""
        if self._autoencoder is None:
            return [None] * len(self._suffixes)
        return self._autoencoder.write(self._folder, dict(zip(self._suffixes, self._family.sizes, strict=True)))

    def _write_precision(self, precision: Precision) -> None:
        """All lowerings of one precision at all sizes, over one weight file."""
        family, tensors = self._family, traced_weights(self._tensors, DTYPES[precision])
        graphs: dict[tuple[int, Lowering], list[tuple[int, GraphBuilder, onnx.ModelProto]]] = {}
        with self._folder.shared_weights(precision, tensors, 48 + 16 * len(self._suffixes)) as weights:
            for size, suffix in enumerate(self._suffixes):
                for block in family.blocks:
                    for lowering in self._lowerings(precision):
                        name = f"block{block}.{lowering}-{precision}{suffix}"
                        self._folder.step(name)
                        graph = GraphBuilder(name, weights.file, weights.location)
                        model = family.build_graph(graph, block, lowering, precision, size)
                        graphs.setdefault((size, lowering), []).append((block, graph, model))
            denoisers = {key: traced.over(weights) for key, traced in self._traced.items()}
        file = self._folder.file(self._folder.weights(precision))
        for (size, kind), model in denoisers.items():
            network = self._folder.network(model, file, f"{model.graph.name}.{precision}{self._suffixes[size]}")
            self._denoisers[size].append(DenoiserSpec(kind=kind, precision=precision, network=network))
        peaks: dict[str, float] | None = None
        if precision == "fp16":
            self._folder.step("checking activations")
            refuse_overflow(found := family.activation_peaks())
            peaks = {name: float(f"{peak:.4g}") for name, peak in found.items()}
        for (size, lowering), entries in graphs.items():
            ordered = sorted(entries, key=lambda entry: entry[0])
            variant = {
                "name": f"{lowering}-{precision}",
                "lowering": lowering,
                "precision": precision,
                "weights": file,
                "activation_peaks": peaks,
                "graphs": tuple(self._write_graph(*entry, lowering, precision) for entry in ordered),
            }
            self._variants[size].append(Variant.model_validate(variant))

    def _write_graph(
        self, block: int, graph: GraphBuilder, model: onnx.ModelProto, lowering: str, precision: Precision
    ) -> GraphSpec:
        wide = 4 if lowering == "cpu" else DTYPES[precision].itemsize
        read = sum(
            int(np.prod(t.shape)) * (wide if t.dtype == DTYPES[precision] else t.dtype.itemsize)
            for t in graph.used_weights.values()
        )
        return GraphSpec(block=block, **self._folder.graph(model, graph.name), weight_bytes=read)


def _suffix(size: GraphSize, default: GraphSize) -> str:
    shape = None
    if size.data_shape != default.data_shape:
        _, height, width = size.data_shape
        shape = height, width
    return size_suffix(shape, None if size.batch == default.batch else size.batch)


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        return "source"
