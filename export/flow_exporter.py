"""From the checkpoint of an autoregressive flow to a bundle."""

from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from starflow.export.activation_check import activation_peaks, refuse_overflow
from starflow.export.block_weights import BlockWeights
from starflow.export.bundle_writer import DTYPES, BundleWriter, Precision
from starflow.export.export_options import ExportOptions
from starflow.export.geometry import StepGeometry, step_geometry
from starflow.export.graph_builder import GraphBuilder
from starflow.export.step_graph import GuidanceRule, StepGraphOptions, build_step_graph
from starflow.runtime.errors import ExportError, UsageError
from starflow.runtime.graph_spec import FileSpec
from starflow.runtime.manifest import Block, ConditioningSpec, GuidanceSpec, Manifest, ModelSummary, Variant
from starflow.runtime.progress import Report
from starflow.training.checkpoint import CheckpointTensors
from starflow.training.config import BlockConfig, CheckpointConfig, StarflowConfig, TarflowConfig
from starflow.training.model import FlowModel


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
        model: FlowModel,
        tensors: CheckpointTensors,
        options: ExportOptions,
        progress: Report,
    ) -> None:
        super().__init__(folder, config, tensors, tuple(options.precisions), progress)
        self.model, self.options = model, options
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

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted(self.geometries, reverse=True))

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

    def build_graph(self, graph: GraphBuilder, block: int, lowering: str, precision: Precision) -> onnx.ModelProto:
        config, dtype = self.model.block_configs[block], DTYPES[precision]
        options = StepGraphOptions(lowering, dtype, self._rule, self.options.attention_temperature)
        weights = BlockWeights(config, self.model, self.tensors, dtype)
        return build_step_graph(graph, config, weights, self.geometries[block], options)

    def activation_peaks(self) -> dict[str, float]:
        peaks = activation_peaks(self.config, self.model, self.tensors, self.options.activations)
        refuse_overflow(peaks)
        return peaks

    def manifest(self, variants: tuple[Variant, ...]) -> Manifest:
        return Manifest(
            schema_version=1,
            model=self._summary(),
            image=self.image(),
            conditioning=self._conditioning(),
            guidance=GuidanceSpec(rule=self._rule, blocks=tuple(sorted(self.guided))) if self.guided else None,
            attention_temperature=self.options.attention_temperature,
            batch=self.options.batch,
            max_chunk=self.max_chunk,
            prior=self._write_prior(),
            blocks=tuple(self._block(block) for block in self.model.block_configs),
            variants=variants,
            provenance=self.provenance(),
        )

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
