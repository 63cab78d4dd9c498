"""Do an autoregressive flow's activations fit into float16? See `starflow.export.activations`."""

import math
from itertools import chain

import torch
from torch import Tensor

from starflow.export.activations import ActivationData, drawn_conditions, layers_of, peaks_of
from starflow.export.onnx_graph.network_weights import Tensors
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.layers.tokens import least_sides

WORK = 1e12  # multiply-adds of a check on drawn samples: half a minute on two cores
SMALLEST_SIDE = 8  # tokens; large models are checked on smaller images, but no smaller than this
MIN_PASSES, MAX_PASSES = 2, 32


def activation_peaks(
    config: CheckpointConfig, model: AutoregressiveFlow, tensors: Tensors, data: ActivationData | None = None
) -> dict[str, float]:
    """Largest magnitude of any activation, by transformer layer or projection.

    Args:
        model: On the meta device, where it returns.
        data: What to run on, in the normalising direction. None draws samples by Jacobi iteration over the whole sequence:
            until it converges for models of up to some ten million parameters, a few passes over smaller images for
            larger ones. Models conditioned on features then get standard normal ones.
    """

    def run() -> None:
        if data is None:
            _draw(config, model)
        else:
            model(data.x, _encoded(model, data.condition))

    blocks = (layers_of(block, f"blocks.{index}.") for index, block in model.blocks.named_children())
    return peaks_of(model, tensors, chain.from_iterable(blocks), run)


def _draw(config: CheckpointConfig, model: AutoregressiveFlow) -> None:
    """Sample an image, guided where the model can be."""
    cost = 2 * sum(parameter.numel() for parameter in model.parameters())  # of one token
    side = model.side
    if not any(block.positions == "learned" for block in model.block_configs):
        while side > SMALLEST_SIDE and MIN_PASSES * cost * side**2 > WORK:
            side = max(side // 2, SMALLEST_SIDE)
    passes = min(max(int(WORK / (cost * side**2)), MIN_PASSES), MAX_PASSES)
    generator = torch.Generator().manual_seed(0)
    patch = model.config.patch_size
    pixels = [-(-side * patch // multiple) * multiple for multiple in least_sides(model.config.patches)]
    noise = torch.randn(model.noise_shape(1, *pixels), generator=generator)
    y, null = drawn_conditions(config, model, 1, generator)
    plan = Jacobi(chunk=math.prod(pixels), max_iterations=passes)  # the whole sequence of any block
    model.reverse(noise, y, null, guidance=0.0 if y is None else 1.0, jacobi=plan)


def _encoded(model: AutoregressiveFlow, condition: Tensor | None) -> Tensor | None:
    """A condition as the model's `forward` takes it."""
    if condition is None or condition.is_floating_point():
        return condition
    classes = model.num_classes
    if condition.ndim != 1 or not ((condition >= 0) & (condition <= classes)).all():
        raise UsageError(f"the activation data's class ids must be [N], 0 to {classes} ({classes}: no class)")
    return model.encode_labels(condition)
