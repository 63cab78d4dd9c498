"""From a checkpoint to a bundle."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import torch
from safetensors.numpy import save_file

from starflow.export.activation_check import ActivationData, activation_peaks, refuse_overflow
from starflow.export.block_weights import BlockWeights
from starflow.export.geometry import StepGeometry, step_geometry
from starflow.export.graph_builder import GraphBuilder
from starflow.export.lowering import LOWERINGS
from starflow.export.step_graph import GuidanceRule, StepGraphOptions, build_step_graph
from starflow.export.tensor_roles import graph_tensors
from starflow.export.weight_file import WeightFile
from starflow.runtime.atomic_write import atomic_folder
from starflow.runtime.bundle import sha256
from starflow.runtime.errors import ExportError, UsageError
from starflow.runtime.manifest import (
    Block,
    ConditioningSpec,
    FileSpec,
    GraphSpec,
    GuidanceSpec,
    ImageSpec,
    Manifest,
    ModelSummary,
    Provenance,
    Variant,
)
from starflow.runtime.progress import Report, no_report
from starflow.training.checkpoint import CheckpointTensors, open_checkpoint
from starflow.training.config import BlockConfig, CheckpointConfig, StarflowConfig, TarflowConfig
from starflow.training.model import FlowModel, build_model

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[Precision, np.dtype] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
TOOLS = ("starflow-compiler", "torch", "onnx", "numpy")


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        precisions: Types of weights, activations and caches.
        batch: Images decoded together; the runtime splits and pads any number of images.
        shape: Height and width of the data in (latent) pixels; None takes the training size.
        max_chunk: Most tokens of one run; None allows any number up to the capacity.
        guidance: Whether the conditioned blocks run [conditional, null] rows.
        attention_temperature: Whether graphs take the attention temperature as an input.
        condition_tokens: Tokens of a feature condition; None takes the configured number.
        activations: Data whose activations must fit into fp16; None draws samples from the model.
    """

    precisions: Sequence[Precision] = ("fp32",)
    batch: int = 1
    shape: tuple[int, int] | None = None
    max_chunk: int | None = None
    guidance: bool = True
    attention_temperature: bool = False
    condition_tokens: int | None = None
    activations: ActivationData | None = None


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    options: ExportOptions = ExportOptions(),
    *,
    replace: bool = False,
    progress: Report = no_report,
) -> Manifest:
    """Export a checkpoint folder as a bundle, atomically.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError, UsageError: the options do not fit the model, or weights or activations do not fit the precision.
    """
    config, tensors = open_checkpoint(checkpoint)
    with torch.device("meta"):
        model = build_model(config.model)
    tensors.check(model)
    with atomic_folder(bundle, replace=replace) as folder:
        return _Exporter(folder, config, model, tensors, options, progress).run()


class _Exporter:
    """Writes every file of a bundle into a folder, which the caller makes appear atomically."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        model: FlowModel,
        tensors: CheckpointTensors,
        options: ExportOptions,
        progress: Report,
    ) -> None:
        self.folder, self.config, self.model, self.tensors = folder, config, model, tensors
        self.options, self.progress, self._done = options, progress, 0
        self.height, self.width = self._shape()
        self.condition_tokens = self._condition_tokens()
        self.guided = self._guided_blocks()
        self.geometries = {block.index: self._geometry(block) for block in model.block_configs if block.layers}
        if options.batch < 1:
            raise UsageError(f"--batch {options.batch}: give a number of images of at least 1")
        for index, geometry in self.geometries.items():
            if geometry.capacity < 1:
                raise ExportError(
                    f"flow block {index} decodes no token: one token and no start token leave nothing to do"
                )
        longest = max((geometry.capacity for geometry in self.geometries.values()), default=1)
        self.max_chunk = longest if options.max_chunk is None else options.max_chunk
        if not 1 <= self.max_chunk <= longest:
            raise UsageError(f"--max-chunk {self.max_chunk}: this model's blocks take 1 to {longest} tokens")

    def _step(self, doing: str) -> None:
        self._done += 1
        graphs = len(self.geometries) * sum(len(lowerings(precision)) for precision in self.options.precisions)
        self.progress(self._done, 2 * graphs + ("fp16" in self.options.precisions), doing)

    def _shape(self) -> tuple[int, int]:
        model = self.model.config
        height, width = self.options.shape or (model.img_size, model.img_size)
        if height < 1 or width < 1 or height % model.patch_size or width % model.patch_size:
            raise UsageError(f"--shape {height}x{width}: sides must be multiples of the patch size {model.patch_size}")
        if isinstance(model, TarflowConfig) and (height, width) != (model.img_size, model.img_size):
            raise UsageError(f"--shape {height}x{width}: TARFlow decodes {model.img_size}x{model.img_size} only")
        return height, width

    def _condition_tokens(self) -> int:
        model = self.model.config
        configured = model.txt_size if isinstance(model, StarflowConfig) else 0
        asked = self.options.condition_tokens
        if asked is None:
            return configured
        if not configured or self.config.conditioning.kind == "class":
            raise UsageError("--condition-tokens: only models conditioned on features take another number of tokens")
        if asked < 1:
            raise UsageError(f"--condition-tokens {asked}: give a number of at least 1")
        return asked

    def _guided_blocks(self) -> frozenset[int]:
        """Blocks that run [conditional, null] rows; an unconditional TARFlow's null branch differs in temperature."""
        if not self.options.guidance:
            return frozenset()
        by_temperature = isinstance(self.model.config, TarflowConfig) and self.options.attention_temperature
        return frozenset(
            b.index for b in self.model.block_configs if b.layers and (b.condition != "none" or by_temperature)
        )

    def _geometry(self, block: BlockConfig) -> StepGeometry:
        patch = self.model.config.patch_size
        return step_geometry(
            block,
            batch=self.options.batch,
            guided=block.index in self.guided,
            condition_tokens=self.condition_tokens,
            height=self.height // patch,
            width=self.width // patch,
        )

    def run(self) -> Manifest:
        (self.folder / "graphs").mkdir()
        variants: list[Variant] = []
        for precision in self.options.precisions:
            variants += self._write_precision(precision)
        manifest = Manifest(
            schema_version=1,
            model=self._summary(),
            image=ImageSpec(
                mode=self.config.image.mode, scale=self.config.latent.scale, shift=self.config.latent.shift
            ),
            conditioning=self._conditioning(),
            guidance=GuidanceSpec(rule=self._rule, blocks=tuple(sorted(self.guided))) if self.guided else None,
            attention_temperature=self.options.attention_temperature,
            batch=self.options.batch,
            max_chunk=self.max_chunk,
            prior=self._write_prior(),
            blocks=tuple(self._block(block) for block in self.model.block_configs),
            variants=tuple(variants),
            provenance=Provenance(
                checkpoint_sha256=self.tensors.sha256(),
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                tools=_tool_versions(),
            ),
        )
        (self.folder / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def _activation_peaks(self) -> dict[str, float]:
        """What float16 has to hold."""
        self._step("checking activations")
        peaks = activation_peaks(self.config, self.model, self.tensors, self.options.activations)
        refuse_overflow(peaks)
        return {name: float(f"{peak:.4g}") for name, peak in peaks.items()}

    @property
    def _rule(self) -> GuidanceRule:
        return "ratio" if isinstance(self.model.config, StarflowConfig) else "linear"

    def _write_precision(self, precision: Precision) -> list[Variant]:
        """All lowerings of one precision, over one weight file."""
        location = f"weights/{precision}.safetensors"
        path = self.folder / "graphs" / location
        models: dict[str, list[tuple[int, GraphBuilder, onnx.ModelProto, Path]]] = {}
        with WeightFile(path, header_room=1024 * (len(self.tensors) + 64)) as weights:
            for block in reversed(self.model.block_configs):
                if not block.layers:
                    continue
                for lowering in lowerings(precision):
                    self._step(f"flow block {block.index}, {lowering} {precision}")
                    name = f"block{block.index}.{lowering}-{precision}"
                    graph = GraphBuilder(name, weights, location)
                    options = StepGraphOptions(
                        lowering, DTYPES[precision], self._rule, self.options.attention_temperature
                    )
                    source = BlockWeights(block, self.model, self.tensors, DTYPES[precision])
                    model = build_step_graph(graph, block, source, self.geometries[block.index], options)
                    target = self.folder / "graphs" / f"{name}.onnx"
                    models.setdefault(lowering, []).append((block.index, graph, model, target))
        file = self._file(path)
        peaks = self._activation_peaks() if precision == "fp16" else None
        return [
            Variant(
                name=f"{lowering}-{precision}",
                lowering=lowering,
                precision=precision,
                weights=file,
                activation_peaks=peaks,
                graphs=tuple(
                    self._write_graph(*entry, lowering, precision) for entry in sorted(entries, key=lambda e: e[0])
                ),
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
        return GraphSpec(block=block, file=self._file(path), inputs=inputs, outputs=outputs, weight_bytes=read)

    def _write_prior(self) -> FileSpec | None:
        """The learned prior's standard deviation, where it is not 1."""
        if "var" not in self.model.state_dict():
            return None
        deviation = np.sqrt(self.tensors["var"]().astype(np.float32))
        if (deviation == 1).all():
            return None
        if not np.isfinite(deviation).all():
            raise ExportError("var holds NaN, infinite or negative values; the prior cannot be sampled")
        path = self.folder / "graphs" / "weights" / "prior.safetensors"
        save_file({"standard_deviation": deviation}, path)
        return self._file(path)

    def _file(self, path: Path) -> FileSpec:
        return FileSpec(path=path.relative_to(self.folder).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))

    def _block(self, block: BlockConfig) -> Block:
        geometry = self.geometries.get(block.index)
        return Block(
            index=block.index,
            identity=geometry is None,
            reversed=block.reversed,
            rows=geometry.rows if geometry else 0,
            prefix=geometry.prefix if geometry else 0,
            first_token=geometry.first_token if geometry else 0,
            capacity=geometry.capacity if geometry else 0,
        )

    def _conditioning(self) -> ConditioningSpec:
        model, given = self.model.config, self.config.conditioning
        if isinstance(model, TarflowConfig):
            kind = "class-label" if model.num_classes else "none"
            return ConditioningSpec(kind=kind, num_classes=model.num_classes, class_names=given.class_names)
        if model.txt_size == 0:
            return ConditioningSpec(kind="none")
        if given.kind == "class":
            return ConditioningSpec(
                kind="class-token",
                num_classes=given.num_classes,
                class_names=given.class_names,
                tokens=1,
                width=model.txt_dim,
            )
        return ConditioningSpec(kind="features", tokens=self.condition_tokens, width=model.txt_dim)

    def _summary(self) -> ModelSummary:
        model = self.model.config
        starflow = isinstance(model, StarflowConfig)
        return ModelSummary(
            family=model.family,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            noise_std=self.config.noise_std,
            data_shape=(model.in_channels, self.height, self.width),
            noise_layout="image" if starflow else "tokens",
            patch_size=model.patch_size,
            patch_order="row-column-channel" if starflow else "channel-row-column",
            tokens=(self.height // model.patch_size) * (self.width // model.patch_size),
            token_dim=model.in_channels * model.patch_size**2,
        )


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
