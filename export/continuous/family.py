"""A continuous flow as a bundle has it: one velocity graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch

from starflow.export.activations import drawn_conditions, layers_of, peaks_of
from starflow.export.bundle_folder import BundleFolder
from starflow.export.continuous.graph import MAX_PASSES, VelocityGraph, VelocityGraphOptions
from starflow.export.continuous.mlp import MlpVelocityGraph
from starflow.export.continuous.transformer import TransformerVelocityGraph
from starflow.export.export_options import ExportOptions
from starflow.export.flow_family import FlowFamily
from starflow.export.graph_size import GraphSize
from starflow.export.onnx_graph.builder import GraphBuilder
from starflow.export.onnx_graph.network_weights import NetworkWeights
from starflow.export.precision import DTYPES, Precision
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest, ContinuousSummary
from starflow.runtime.bundle.manifest import ConditioningSpec
from starflow.runtime.plain.errors import UsageError
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.config import ContinuousMlpConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.tensor_file import CheckpointTensors

CHECK_STEPS = 8  # along the paths on which activations are looked at


class ContinuousFamily(FlowFamily):
    """A `FlowFamily`; the arguments are those of `BundleWriter`, and the network on the meta device."""

    def __init__(
        self, config: CheckpointConfig, model: ContinuousFlow, tensors: CheckpointTensors, options: ExportOptions
    ) -> None:
        if options.max_chunk is not None:
            raise UsageError(
                "--max-chunk: only autoregressive flows decode in chunks; leave it out for a continuous flow"
            )
        if options.attention_temperature:
            raise UsageError(
                "--attention-temperature: only autoregressive flows have one; leave it out for a continuous flow"
            )
        if options.other_shapes:
            raise UsageError("--shape: the bundle of a continuous flow holds one shape; export a bundle for each shape")
        if "cuda" in options.lowerings:
            raise UsageError(
                "--lowering cuda: only autoregressive flows have it; a continuous flow runs portable on a GPU"
            )
        if options.denoisers:
            raise UsageError("--denoise: a continuous flow samples the data without noise; leave it out")
        self._config, self._model, self._tensors, self._options = config, model, tensors, options
        self.conditioning = self._conditioning()
        self.sizes = [GraphSize(self._data_shape(), batch) for batch in options.batches]
        self._guided = options.guidance and self.conditioning.kind != "none"

    def build_graph(
        self, graph: GraphBuilder, block: int, lowering: str, precision: Precision, size: int
    ) -> onnx.ModelProto:
        options = VelocityGraphOptions(
            lowering=lowering,
            dtype=DTYPES[precision],
            batch=self.sizes[size].batch,
            guided=self._guided,
            data_shape=self.sizes[size].data_shape,
            condition_tokens=self.conditioning.tokens,
        )
        weights, config = NetworkWeights(self._tensors, DTYPES[precision]), self._model.config
        written: VelocityGraph
        if isinstance(config, ContinuousMlpConfig):
            written = MlpVelocityGraph(graph, weights, options, config)
        else:
            written = TransformerVelocityGraph(graph, weights, options, config)
        return written.build()

    def activation_peaks(self) -> dict[str, float]:
        """On straight paths from noise to the data; without data, on the network's own paths, guided where it can be."""
        model, data, generator = self._model, self._options.activations, torch.Generator().manual_seed(0)

        def run() -> None:
            if data is None:
                y, null = drawn_conditions(self._config, model, 2, generator)
                noise = torch.randn(model.noise_shape(2), generator=generator)
                model.reverse(noise, y, null, guidance=0.0 if y is None else 1.0, steps=CHECK_STEPS)
                return
            shape = model.noise_shape(1)[1:]
            if data.x.shape[1:] != shape:
                raise UsageError(f"activation data: x is {list(data.x.shape)}, expected {['N', *shape]}")
            noise = torch.randn(data.x.shape, generator=generator)
            for index in range(CHECK_STEPS + 1):
                t = index / CHECK_STEPS
                model((1 - t) * noise + t * data.x, torch.full((len(noise),), t), data.condition)

        return peaks_of(model, self._tensors, layers_of(model), run)

    def manifest(
        self, folder: BundleFolder, common: Mapping[str, Any], at_sizes: Sequence[dict[str, Any]]
    ) -> ContinuousManifest:
        summary = ContinuousSummary(
            family="continuous-flow",
            network=self._model.config.network,
            parameters=self._model.parameter_count,
            data_shape=self.sizes[0].data_shape,
        )
        (fields,) = self.by_shape(at_sizes)
        return ContinuousManifest(**common, **fields, model=summary, guided=self._guided, max_passes=MAX_PASSES)

    def _data_shape(self) -> tuple[int, ...]:
        config, shape = self._model.config, self._options.shape
        if not isinstance(config, ContinuousMlpConfig):
            return (config.in_channels, *self._options.sizes(config.img_size, [(config.patch_size,) * 2])[0])
        if shape:
            raise UsageError(
                f"--shape {shape[0]}x{shape[1]}: this model samples points of {config.dimensions} values; leave it out"
            )
        return (config.dimensions,)

    def _conditioning(self) -> ConditioningSpec:
        config = self._model.config
        trained = 0 if isinstance(config, ContinuousMlpConfig) else config.txt_size
        tokens = self._options.tokens(trained, features=bool(trained))
        if tokens and not isinstance(config, ContinuousMlpConfig):
            return ConditioningSpec(kind="features", tokens=tokens, width=config.txt_dim)
        if self._model.num_classes:
            names = self._config.conditioning.class_names
            return ConditioningSpec(kind="class-label", num_classes=self._model.num_classes, class_names=names)
        return ConditioningSpec(kind="none")
