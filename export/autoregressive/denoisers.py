"""The denoisers of an export: which ones, traced once for each shape, over the weights of each precision."""

import numpy as np
import onnx

from starflow.export.autoregressive.score_graph import DenoiserShape, trace_denoiser, trace_score
from starflow.export.autoregressive.shape import FlowShape
from starflow.export.export_options import ExportOptions
from starflow.export.onnx_graph.traced_graph import SharedWeights, TracedGraph, traced_weights
from starflow.export.onnx_graph.weight_file import WeightFile
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.runtime.plain.errors import UsageError
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.config import CheckpointConfig
from starflow.training.tensor_file import CheckpointTensors


class FlowDenoisers:
    """Writes the graphs of a flow's denoisers.

    Args:
        config: The checkpoint's.
        model: Its model, on the meta device.
        tensors: Its tensors.
        options: Which ones to write.
        condition_tokens: Tokens of the condition, for models that have one.

    Attributes:
        kinds: Those that are written.

    Raises:
        UsageError: the model has none of a kind.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        model: AutoregressiveFlow,
        tensors: CheckpointTensors,
        options: ExportOptions,
        condition_tokens: int,
    ) -> None:
        self.kinds = _kinds(config, options)
        self._model, self._tensors = model, tensors
        self._batch, self._condition_tokens = options.batch, condition_tokens
        self._traced: dict[tuple[DenoiserKind, str], TracedGraph] = {}

    def graph(
        self, kind: DenoiserKind, shape: FlowShape, weights: WeightFile, location: str, dtype: np.dtype
    ) -> onnx.ModelProto:
        """The graph of a denoiser at a shape over the step graphs' weights of some type; it computes in float32."""
        key = (kind, str(shape))
        if key not in self._traced:
            self._traced[key] = self._trace(kind, shape)
        return self._traced[key].over(SharedWeights(traced_weights(self._tensors, dtype), weights, location))

    def _trace(self, kind: DenoiserKind, shape: FlowShape) -> TracedGraph:
        sizes = DenoiserShape(self._batch, shape.height, shape.width, self._condition_tokens)
        if kind == "score":
            return trace_score(self._model, sizes)
        assert isinstance(self._model, Starflow)
        return trace_denoiser(self._model, sizes)


def _kinds(config: CheckpointConfig, options: ExportOptions) -> tuple[DenoiserKind, ...]:
    model, asked = config.model, options.denoisers
    learned = isinstance(model, StarflowConfig) and model.learnable_self_denoiser
    if asked is None:
        return ("learned",) if learned else ()
    if "learned" in asked and not learned:
        raise UsageError("--denoise learned: this model has no learned denoiser (learnable_self_denoiser)")
    if "score" in asked and not config.noise_std:
        raise UsageError("--denoise score: config.json states no noise_std; state the one the model was trained with")
    return tuple(dict.fromkeys(asked))
