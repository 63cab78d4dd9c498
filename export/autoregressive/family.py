"""An autoregressive flow as a bundle has it: a step graph for each flow block."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx

from starflow.export.autoregressive.activation_check import activation_peaks
from starflow.export.autoregressive.block_weights import BlockWeights
from starflow.export.autoregressive.denoiser_graphs import DenoiserShape, denoiser_kinds, trace_denoiser
from starflow.export.autoregressive.fused_step_graph import FusedStepGraph
from starflow.export.autoregressive.geometry import FlowSize, StepGeometry, flow_sizes
from starflow.export.autoregressive.step_graph import GuidanceRule, StepGraph, StepGraphOptions
from starflow.export.bundle_folder import BundleFolder
from starflow.export.export_options import ExportOptions
from starflow.export.flow_family import FlowFamily
from starflow.export.graph_size import GraphSize
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.traced_graph import TracedGraph
from starflow.export.precision import DTYPES, Precision
from starflow.runtime.bundle.autoregressive_manifest import (
    AutoregressiveManifest,
    Block,
    GuidanceSpec,
    ModelSummary,
    OtherShape,
)
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.runtime.plain.errors import ExportError
from starflow.training.autoregressive.config import BlockConfig, StarflowConfig, TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.layers.tokens import Patch
from starflow.training.tensor_file import CheckpointTensors


class AutoregressiveFamily(FlowFamily):
    """A `FlowFamily`; the arguments are those of `BundleWriter`, and the model on the meta device."""

    def __init__(
        self, config: CheckpointConfig, model: AutoregressiveFlow, tensors: CheckpointTensors, options: ExportOptions
    ) -> None:
        self._config, self._model, self._tensors, self._options = config, model, tensors, options
        trained = model.config.txt_size if isinstance(model.config, StarflowConfig) else 0
        self._condition_tokens = options.tokens(trained, features=bool(trained) and config.conditioning.kind != "class")
        self._guided = self._guided_blocks()
        self._sizes = flow_sizes(model, options, self._condition_tokens, self._guided)
        self._rule: GuidanceRule = "ratio" if isinstance(model.config, StarflowConfig) else "linear"
        self.conditioning = self._conditioning()
        self.sizes = [
            GraphSize((model.config.in_channels, size.height, size.width), size.batch) for size in self._sizes
        ]
        self.own_patches = model.config.block_patch_sizes is not None
        self.blocks = tuple(sorted(self._sizes[0].geometries, reverse=True))
        self.denoisers = {kind: partial(self._trace, kind) for kind in denoiser_kinds(config, options)}

    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, size: int
    ) -> onnx.ModelProto:
        config, dtype = self._model.block_configs[block], DTYPES[precision]
        options = StepGraphOptions(lowering, dtype, self._rule, self._options.attention_temperature)
        weights = BlockWeights(config, self._model, self._tensors, dtype)
        kind = FusedStepGraph if lowering == "cuda" else StepGraph
        return kind(graph, config, weights, self._sizes[size].geometries[block], options).build()

    def activation_peaks(self) -> dict[str, float]:
        return activation_peaks(self._config, self._model, self._tensors, self._options.activations)

    def manifest(
        self, folder: BundleFolder, common: Mapping[str, Any], at_sizes: Sequence[dict[str, Any]]
    ) -> AutoregressiveManifest:
        own = [at | {"blocks": self._blocks(size)} for size, at in zip(self._sizes, at_sizes, strict=True)]
        shapes = self._sizes[:: len(self._options.batches)]
        default, *others = (self._at_shape(shape) | at for shape, at in zip(shapes, self.by_shape(own), strict=True))
        return AutoregressiveManifest(
            **common,
            **default,
            guidance=GuidanceSpec(rule=self._rule, blocks=tuple(sorted(self._guided))) if self._guided else None,
            attention_temperature=self._options.attention_temperature,
            prior=self._write_prior(folder),
            shapes=tuple(OtherShape(**other) for other in others),
        )

    def _at_shape(self, size: FlowSize) -> dict[str, Any]:
        """The fields of this family's manifest that differ between shapes only."""
        return {"model": self._summary(size), "max_chunk": size.max_chunk}

    def _blocks(self, size: FlowSize) -> tuple[Block, ...]:
        return tuple(
            _block(block, size.geometries.get(block.index), block.patch if self.own_patches else None)
            for block in self._model.block_configs
        )

    def _trace(self, kind: DenoiserKind, size: int) -> TracedGraph:
        at = self._sizes[size]
        return trace_denoiser(self._model, kind, DenoiserShape(at.batch, at.height, at.width, self._condition_tokens))

    def _guided_blocks(self) -> frozenset[int]:
        """Blocks that run [conditional, null] rows; an unconditional TARFlow's null branch differs in temperature."""
        if not self._options.guidance:
            return frozenset()
        by_temperature = isinstance(self._model.config, TarflowConfig) and self._options.attention_temperature
        return frozenset(
            b.index for b in self._model.block_configs if b.layers and (b.condition != "none" or by_temperature)
        )

    def _write_prior(self, folder: BundleFolder) -> FileSpec | None:
        """The learned prior's standard deviation, where it is not 1."""
        if "var" not in self._model.state_dict():
            return None
        deviation = np.sqrt(self._tensors["var"]().astype(np.float32))
        if (deviation == 1).all():
            return None
        if not np.isfinite(deviation).all():
            raise ExportError("var holds NaN, infinite or negative values; the prior cannot be sampled")
        with folder.shared_weights("prior", {}) as weights:
            weights.file.add("standard_deviation", lambda: deviation)
        return folder.file(weights.file.path)

    def _conditioning(self) -> ConditioningSpec:
        model, given = self._model.config, self._config.conditioning
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
        return ConditioningSpec(kind="features", tokens=self._condition_tokens, width=model.txt_dim)

    def _summary(self, size: FlowSize) -> ModelSummary:
        model = self._model.config
        starflow = isinstance(model, StarflowConfig)
        return ModelSummary(
            family=model.family,
            parameters=self._model.parameter_count,
            noise_std=self._config.noise_std,
            data_shape=(model.in_channels, size.height, size.width),
            noise_layout="image" if starflow else "tokens",
            patch_size=model.patch_size,
            patch_order="row-column-channel" if starflow else "channel-row-column",
            tokens=(size.height // model.patch_size) * (size.width // model.patch_size),
            token_dim=model.in_channels * model.patch_size**2,
        )


def _block(block: BlockConfig, geometry: StepGeometry | None, patch: Patch | None) -> Block:
    return Block(
        index=block.index,
        identity=geometry is None,
        reversed=block.reversed,
        rows=geometry.rows if geometry else 0,
        prefix=geometry.prefix if geometry else 0,
        first_token=geometry.first_token if geometry else 0,
        capacity=geometry.capacity if geometry else 0,
        patch=patch,
    )
