"""From the checkpoint of an autoregressive flow to a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from starflow.export.autoregressive.activation_check import activation_peaks, refuse_overflow
from starflow.export.autoregressive.block_weights import BlockWeights
from starflow.export.autoregressive.denoisers import FlowDenoisers
from starflow.export.autoregressive.geometry import StepGeometry
from starflow.export.autoregressive.shape import FlowShape, flow_shapes
from starflow.export.autoregressive.step_graph import GuidanceRule, StepGraphOptions, build_step_graph
from starflow.export.bundle_writer import DTYPES, BundleWriter, Precision
from starflow.export.export_options import ExportOptions
from starflow.export.networks.autoencoder import find_autoencoder
from starflow.export.networks.text_encoder import find_text_encoder, for_shape
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.runtime.bundle.autoregressive_manifest import (
    AutoregressiveManifest,
    Block,
    GuidanceSpec,
    ModelSummary,
    OtherShape,
)
from starflow.runtime.bundle.graph_spec import FileSpec
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.network_spec import AutoencoderSpec, DenoiserKind
from starflow.runtime.plain.errors import ExportError, UsageError
from starflow.runtime.plain.progress import Report
from starflow.training.autoregressive.config import BlockConfig, StarflowConfig, TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.tensor_file import CheckpointTensors


class FlowExporter(BundleWriter):
    """Writes the bundle of an autoregressive flow: a step graph for each flow block.

    Args:
        folder: An empty folder.
        config: The checkpoint's.
        model: Its model, on the meta device.
        tensors: Its tensors.
        options: What to write.
        progress: Told of every graph.

    Raises:
        ExportError, UsageError: the options do not fit the model.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        model: AutoregressiveFlow,
        tensors: CheckpointTensors,
        options: ExportOptions,
        progress: Report,
    ) -> None:
        super().__init__(folder, config, tensors, tuple(options.precisions), progress)
        self.model, self.options = model, options
        self.condition_tokens = self._condition_tokens()
        self.guided = self._guided_blocks()
        self.flow_shapes = self.shapes = flow_shapes(model, options, self.condition_tokens, self.guided)
        self.conditioning = self._conditioning()
        self.text_encoder = find_text_encoder(
            tensors.path.parent, config, self.conditioning, options.text_encoder, options.text_precision
        )
        self.other_steps += 2 * bool(self.text_encoder)
        data_shape = (model.config.in_channels, self.flow_shapes[0].height, self.flow_shapes[0].width)
        self.autoencoder = find_autoencoder(tensors.path.parent, config, data_shape, options.autoencoder)
        self.other_steps += self.autoencoder.steps * len(self.shapes) if self.autoencoder else 0
        self.flow_denoisers = FlowDenoisers(config, model, tensors, options, self.condition_tokens)
        self.other_steps += 2 * len(self.flow_denoisers.kinds) * len(self.precisions) * len(self.shapes)

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted(self.flow_shapes[0].geometries, reverse=True))

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

    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, shape: int
    ) -> onnx.ModelProto:
        config, dtype = self.model.block_configs[block], DTYPES[precision]
        options = StepGraphOptions(lowering, dtype, self._rule, self.options.attention_temperature)
        weights = BlockWeights(config, self.model, self.tensors, dtype)
        return build_step_graph(graph, config, weights, self.flow_shapes[shape].geometries[block], options)

    def build_denoisers(
        self, weights: WeightFile, location: str, precision: Precision, shape: int
    ) -> dict[DenoiserKind, onnx.ModelProto]:
        graphs: dict[DenoiserKind, onnx.ModelProto] = {}
        for kind in self.flow_denoisers.kinds:
            self.step(f"{kind} denoiser, {precision}{self.suffix(shape)}")
            dtype = DTYPES[precision]
            graphs[kind] = self.flow_denoisers.graph(kind, self.flow_shapes[shape], weights, location, dtype)
        return graphs

    def activation_peaks(self) -> dict[str, float]:
        peaks = activation_peaks(self.config, self.model, self.tensors, self.options.activations)
        refuse_overflow(peaks)
        return peaks

    def manifest(self) -> AutoregressiveManifest:
        self._autoencoders = self._write_autoencoders()
        self._text = self.text_encoder.write(self) if self.text_encoder else None
        return AutoregressiveManifest(
            schema_version=1,
            **self._at_shape(0),
            image=self.image(),
            conditioning=self.conditioning,
            guidance=GuidanceSpec(rule=self._rule, blocks=tuple(sorted(self.guided))) if self.guided else None,
            attention_temperature=self.options.attention_temperature,
            batch=self.options.batch,
            prior=self._write_prior(),
            provenance=self.provenance(),
            shapes=tuple(OtherShape(**self._at_shape(shape)) for shape in range(1, len(self.shapes))),
        )

    def _at_shape(self, index: int) -> dict[str, Any]:
        """The fields of the manifest that differ between shapes."""
        shape = self.flow_shapes[index]
        return {
            "model": self._summary(shape),
            "max_chunk": shape.max_chunk,
            "blocks": tuple(_block(block, shape.geometries.get(block.index)) for block in self.model.block_configs),
            "variants": tuple(self.variants[index]),
            "text": for_shape(self._text, shape.height, shape.width),
            "autoencoder": self._autoencoders[index],
            "denoisers": tuple(self.denoisers[index]),
        }

    def _write_autoencoders(self) -> Sequence[AutoencoderSpec | None]:
        """The autoencoder at each shape, if there is one."""
        if self.autoencoder is None:
            return [None] * len(self.flow_shapes)
        sizes = [(shape.height, shape.width) for shape in self.flow_shapes]
        return self.autoencoder.write(self, self.options.batch, sizes)

    @property
    def _rule(self) -> GuidanceRule:
        return "ratio" if isinstance(self.model.config, StarflowConfig) else "linear"

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
        return self.file(path)

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

    def _summary(self, shape: FlowShape) -> ModelSummary:
        model = self.model.config
        starflow = isinstance(model, StarflowConfig)
        return ModelSummary(
            family=model.family,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            noise_std=self.config.noise_std,
            data_shape=(model.in_channels, shape.height, shape.width),
            noise_layout="image" if starflow else "tokens",
            patch_size=model.patch_size,
            patch_order="row-column-channel" if starflow else "channel-row-column",
            tokens=(shape.height // model.patch_size) * (shape.width // model.patch_size),
            token_dim=model.in_channels * model.patch_size**2,
        )


def _block(block: BlockConfig, geometry: StepGeometry | None) -> Block:
    return Block(
        index=block.index,
        identity=geometry is None,
        reversed=block.reversed,
        rows=geometry.rows if geometry else 0,
        prefix=geometry.prefix if geometry else 0,
        first_token=geometry.first_token if geometry else 0,
        capacity=geometry.capacity if geometry else 0,
    )
