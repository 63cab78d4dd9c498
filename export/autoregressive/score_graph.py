"""Graphs of the two denoisers: the flow's own score, and the learned denoiser's prediction.

Both run once, after the last flow block, in float32 and with standard operators. What is done with their output,
x + rate sigma^2 score or x - prediction * 0.3 (sigma - sigma') / sigma, is one line of the caller's: see
`training.denoise`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from starflow.export.onnx_graph.traced_graph import TracedGraph, trace
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.denoise import score
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow


@dataclass(frozen=True)
class DenoiserShape:
    """Static sizes of a denoiser's graph: height and width in pixels, condition tokens where the model has text."""

    batch: int
    height: int
    width: int
    condition_tokens: int = 0


def trace_score(model: AutoregressiveFlow, shape: DenoiserShape) -> TracedGraph:
    """Trace grad log p(x | y): one pass forward and one backward through the whole flow.

    Inputs: `x` [B, C, H, W] float32; `condition` [B, m, width] float32 (STARFlow with text) or `label` [B] int64, the
    number of classes being the null class (TARFlow with classes). Output: `score`, shaped as x.

    Args:
        model: May be on the meta device.
        shape: Static sizes.
    """
    return trace("score", model, _score, _inputs(model, shape), "score")


def trace_denoiser(model: Starflow, shape: DenoiserShape) -> TracedGraph:
    """Trace the learned denoiser.

    Inputs: `x` [B, C, H, W] float32, and `condition` [B, m, width] float32 for a denoiser that reads text. Output:
    `prediction`, shaped as x. Arguments as `trace_score` has them.
    """
    inputs = _inputs(model, shape)
    if not model.config.conditional_denoiser:
        inputs.pop("condition", None)
    return trace("denoiser", model, Starflow.denoiser_prediction, inputs, "prediction")


def _score(model: AutoregressiveFlow, x: Tensor, given: Tensor | None = None) -> Tensor:
    y = model.encode_labels(given) if given is not None and not given.is_floating_point() else given
    return score(model, x, y)


def _inputs(model: AutoregressiveFlow, shape: DenoiserShape) -> dict[str, Tensor]:
    """Name, shape and type of every input, without data."""
    config = model.config
    inputs = {"x": torch.empty(shape.batch, config.in_channels, shape.height, shape.width, device="meta")}
    if isinstance(config, StarflowConfig):
        if config.txt_size:
            inputs["condition"] = torch.empty(shape.batch, shape.condition_tokens, config.txt_dim, device="meta")
    elif config.num_classes:
        inputs["label"] = torch.empty(shape.batch, dtype=torch.int64, device="meta")
    return inputs
