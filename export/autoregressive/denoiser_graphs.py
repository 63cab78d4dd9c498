"""Graphs of the two denoisers: the flow's own score, and the learned denoiser's prediction.

Both run once, after the last flow block, in float32 and with standard operators. What is done with their output,
x + rate sigma^2 score or x - prediction * 0.3 (sigma - sigma') / sigma, is one line of the caller's: see
`training.denoise`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from starflow.export.export_options import ExportOptions
from starflow.export.onnx_graph.traced_graph import TracedGraph, trace
from starflow.runtime.bundle.network_spec import DenoiserKind
from starflow.runtime.plain.errors import UsageError
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.denoise import score
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.config import CheckpointConfig


@dataclass(frozen=True)
class DenoiserShape:
    """Static sizes of a denoiser's graph: height and width in pixels, condition tokens where the model has text."""

    batch: int
    height: int
    width: int
    condition_tokens: int = 0


def denoiser_kinds(config: CheckpointConfig, options: ExportOptions) -> tuple[DenoiserKind, ...]:
    """The denoisers an export writes; UsageError if the model has none of a kind that was asked for."""
    model, asked = config.model, options.denoisers
    learned = isinstance(model, StarflowConfig) and model.learnable_self_denoiser
    if asked is None:
        return ("learned",) if learned else ()
    if "learned" in asked and not learned:
        raise UsageError("--denoise learned: this model has no learned denoiser (learnable_self_denoiser)")
    if "score" in asked and not config.noise_std:
        raise UsageError("--denoise score: config.json has no noise_std; add the value that the model was trained with")
    return tuple(dict.fromkeys(asked))


def trace_denoiser(model: AutoregressiveFlow, kind: DenoiserKind, shape: DenoiserShape) -> TracedGraph:
    """Trace a denoiser's network, which computes in float32.

    `score` traces grad log p(x | y): one pass forward and one backward through the whole flow. `learned` traces what the
    learned denoiser predicts.

    Inputs: `x` [B, C, H, W] float32; `condition` [B, m, width] float32 (STARFlow with text; a learned denoiser that reads no
    text has none) or `label` [B] int64, the number of classes being the null class (TARFlow with classes). Output: `score` or
    `prediction`, shaped as x.

    The model may be on the meta device.
    """
    config = model.config
    inputs = {"x": torch.empty(shape.batch, config.in_channels, shape.height, shape.width, device="meta")}
    if isinstance(config, StarflowConfig):
        if config.txt_size and (kind == "score" or config.conditional_denoiser):
            inputs["condition"] = torch.empty(shape.batch, shape.condition_tokens, config.txt_dim, device="meta")
    elif config.num_classes:
        inputs["label"] = torch.empty(shape.batch, dtype=torch.int64, device="meta")
    if kind == "score":
        return trace("score", model, _score, inputs, "score")
    return trace("denoiser", model, Starflow.denoiser_prediction, inputs, "prediction")


def _score(model: AutoregressiveFlow, x: Tensor, given: Tensor | None = None) -> Tensor:
    y = model.encode_labels(given) if given is not None and not given.is_floating_point() else given
    return score(model, x, y)
