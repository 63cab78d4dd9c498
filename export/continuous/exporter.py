"""From the checkpoint of a continuous flow to a bundle."""

from pathlib import Path

import onnx

from starflow.export.autoregressive.activation_check import refuse_overflow
from starflow.export.bundle_writer import DTYPES, BundleWriter, Precision
from starflow.export.continuous.activations import velocity_peaks
from starflow.export.continuous.graph import MAX_PASSES, VelocityGraph, VelocityGraphOptions
from starflow.export.continuous.mlp import MlpVelocityGraph
from starflow.export.continuous.transformer import TransformerVelocityGraph
from starflow.export.export_options import ExportOptions
from starflow.export.networks.autoencoder import find_autoencoder
from starflow.export.networks.text_encoder import find_text_encoder, for_shape
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest, ContinuousSummary
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.bundle.network_spec import AutoencoderSpec
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.progress import Report
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.config import ContinuousMlpConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.tensor_file import CheckpointTensors


class VelocityExporter(BundleWriter):
    """Writes the bundle of a continuous flow: one velocity graph.

    Args:
        folder: An empty folder.
        config: The checkpoint's.
        model: Its network, on the meta device.
        tensors: Its tensors.
        options: What to write.
        progress: Told of every graph.

    Raises:
        UsageError: the options do not fit the model.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        model: ContinuousFlow,
        tensors: CheckpointTensors,
        options: ExportOptions,
        progress: Report,
    ) -> None:
        super().__init__(folder, config, tensors, tuple(options.precisions), progress)
        self.model, self.options = model, options
        if options.max_chunk is not None:
            raise UsageError("--max-chunk: is for autoregressive flows; a continuous flow moves all tokens at once")
        if options.attention_temperature:
            raise UsageError("--attention-temperature: is for autoregressive flows")
        if options.other_shapes:
            raise UsageError("--shape: a bundle of a continuous flow holds one shape; export another bundle")
        if options.denoisers:
            raise UsageError("--denoise: is for autoregressive flows, which sample noised data")
        self.conditioning = self._conditioning()
        self.text_encoder = find_text_encoder(
            tensors.path.parent, config, self.conditioning, options.text_encoder, options.text_precision
        )
        self.other_steps += 2 * bool(self.text_encoder)
        self.guided = options.guidance and self.conditioning.kind != "none"
        self.data_shape = self._data_shape()
        self.autoencoder = find_autoencoder(tensors.path.parent, config, self.data_shape, options.autoencoder)
        self.other_steps += self.autoencoder.steps if self.autoencoder else 0

    @property
    def blocks(self) -> tuple[int, ...]:
        return (0,)

    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, shape: int
    ) -> onnx.ModelProto:
        options = VelocityGraphOptions(
            lowering=lowering,
            dtype=DTYPES[precision],
            batch=self.options.batch,
            guided=self.guided,
            data_shape=self.data_shape,
            condition_tokens=self.conditioning.tokens,
        )
        weights = NetworkWeights(self.tensors, DTYPES[precision])
        config = self.model.config
        written: VelocityGraph
        if isinstance(config, ContinuousMlpConfig):
            written = MlpVelocityGraph(graph, weights, options, config)
        else:
            written = TransformerVelocityGraph(graph, weights, options, config)
        return written.build()

    def activation_peaks(self) -> dict[str, float]:
        peaks = velocity_peaks(self.config, self.model, self.tensors, self.options.activations)
        refuse_overflow(peaks)
        return peaks

    def manifest(self) -> ContinuousManifest:
        model = self.model
        return ContinuousManifest(
            schema_version=1,
            model=ContinuousSummary(
                family="continuous-flow",
                network=model.config.network,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                data_shape=self.data_shape,
            ),
            image=self.image(),
            conditioning=self.conditioning,
            guided=self.guided,
            batch=self.options.batch,
            max_passes=MAX_PASSES,
            variants=tuple(self.variants[0]),
            text=for_shape(self.text_encoder.write(self), *self.data_shape[1:]) if self.text_encoder else None,
            autoencoder=self._write_autoencoder(),
            provenance=self.provenance(),
        )

    def _write_autoencoder(self) -> AutoencoderSpec | None:
        if self.autoencoder is None:
            return None
        _, height, width = self.data_shape
        return self.autoencoder.write(self, self.options.batch, [(height, width)])[0]

    def _data_shape(self) -> tuple[int, ...]:
        config, shape = self.model.config, self.options.shape
        if isinstance(config, ContinuousMlpConfig):
            if shape:
                raise UsageError(
                    f"--shape {shape[0]}x{shape[1]}: this model makes points of {config.dimensions} values"
                )
            return (config.dimensions,)
        height, width = shape or (config.img_size, config.img_size)
        if height < 1 or width < 1 or height % config.patch_size or width % config.patch_size:
            raise UsageError(f"--shape {height}x{width}: sides must be multiples of the patch size {config.patch_size}")
        return (config.in_channels, height, width)

    def _conditioning(self) -> ConditioningSpec:
        config, given, asked = self.model.config, self.config.conditioning, self.options.condition_tokens
        configured = 0 if isinstance(config, ContinuousMlpConfig) else config.txt_size
        if asked is not None and not configured:
            raise UsageError("--condition-tokens: only models conditioned on features take another number of tokens")
        if asked is not None and asked < 1:
            raise UsageError(f"--condition-tokens {asked}: give a number of at least 1")
        if configured and not isinstance(config, ContinuousMlpConfig):
            return ConditioningSpec(kind="features", tokens=asked or configured, width=config.txt_dim)
        if self.model.num_classes:
            return ConditioningSpec(
                kind="class-label", num_classes=self.model.num_classes, class_names=given.class_names
            )
        return ConditioningSpec(kind="none")
