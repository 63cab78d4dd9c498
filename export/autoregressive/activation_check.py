"""Do a model's activations fit into float16? Runs the model before a 16-bit variant is written.

The PyTorch model runs in float32, on samples it draws or on data that is given, and whatever enters or leaves one of its
modules is looked at: every tensor the fp16 graphs keep in 16 bits is among these. (Attention logits are not; kernels
accumulate them in float32.) bfloat16 has float32's range and needs no check.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starflow.export.autoregressive.streamed_model import Tensors, streamed
from starflow.runtime.plain.errors import ExportError, UsageError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # the check sees one sample, not all
WORK = 1e12  # multiply-adds of a check on drawn samples: half a minute on two cores
SMALLEST_SIDE = 8  # tokens; large models are checked on smaller images, but no smaller than this
MIN_PASSES, MAX_PASSES = 2, 32


@dataclass(frozen=True)
class ActivationData:
    """Data to look at in place of samples drawn from the model.

    Attributes:
        x: [N, C, H, W] float32, scaled as the model was trained.
        condition: Features [N, m, width] float32; class ids [N] int64, the number of classes being the null class; or None.
    """

    x: Tensor
    condition: Tensor | None


def activation_peaks(
    config: CheckpointConfig, model: AutoregressiveFlow, tensors: Tensors, data: ActivationData | None = None
) -> dict[str, float]:
    """Largest magnitude of any activation, by transformer layer or projection.

    Args:
        config: The checkpoint's.
        model: Its model, on the meta device.
        tensors: Its parameters.
        data: What to run on, in the normalising direction. None draws samples by Jacobi iteration over the whole sequence:
            until it converges for models of up to some ten million parameters, a few passes over smaller images for
            larger ones. Models conditioned on features then get standard normal ones.
    """
    peaks: dict[str, float] = {}
    with streamed(model, tensors), watched(_layers(model), peaks), torch.no_grad():
        if data is None:
            _draw(config, model)
        else:
            model(data.x, _encoded(model, data.condition))
    return peaks


def refuse_overflow(peaks: dict[str, float]) -> None:
    """Stop an export to float16 that would overflow.

    Raises:
        ExportError: an activation is not finite, or comes within a factor of two of float16's end.
    """
    for name, peak in peaks.items():
        if not peak * MARGIN <= FLOAT16_MAX:
            raise ExportError(
                f"activations of {name} reach {peak:.4g}; float16 ends at {FLOAT16_MAX:.0f}, half of which is kept free: "
                "use --precision bf16 or fp32"
            )


def _draw(config: CheckpointConfig, model: AutoregressiveFlow) -> None:
    """Sample an image, guided where the model can be."""
    cost = 2 * sum(parameter.numel() for parameter in model.parameters())  # of one token
    side = model.side
    if not any(block.positions == "learned" for block in model.block_configs):
        while side > SMALLEST_SIDE and MIN_PASSES * cost * side**2 > WORK:
            side = max(side // 2, SMALLEST_SIDE)
    passes = min(max(int(WORK / (cost * side**2)), MIN_PASSES), MAX_PASSES)
    generator = torch.Generator().manual_seed(0)
    pixels = side * model.config.patch_size
    noise = torch.randn(model.noise_shape(1, pixels, pixels), generator=generator)
    y, null = _conditions(config, model, generator)
    plan = Jacobi(chunk=side**2, max_iterations=passes)
    model.reverse(noise, y, null, guidance=0.0 if y is None else 1.0, jacobi=plan)


def _conditions(
    config: CheckpointConfig, model: AutoregressiveFlow, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """A condition and the null condition."""
    flow = model.config
    if isinstance(flow, StarflowConfig) and config.conditioning.kind != "class":
        shape = (1, flow.txt_size, flow.txt_dim)
        return (torch.randn(shape, generator=generator), torch.zeros(shape)) if flow.txt_size else (None, None)
    classes = _classes(model)
    if not classes:
        return None, None
    labels = torch.zeros(1, dtype=torch.int64)
    return model.encode_labels(labels), model.encode_labels(torch.full_like(labels, classes))


def _classes(model: AutoregressiveFlow) -> int:
    flow = model.config
    return flow.num_classes if not isinstance(flow, StarflowConfig) else flow.txt_dim - 1 if flow.txt_size else 0


def _encoded(model: AutoregressiveFlow, condition: Tensor | None) -> Tensor | None:
    """A condition as the model's `forward` takes it."""
    if condition is None or condition.is_floating_point():
        return condition
    classes = _classes(model)
    if condition.ndim != 1 or not ((condition >= 0) & (condition <= classes)).all():
        raise UsageError(f"the activation data's class ids must be [N], 0 to {classes} ({classes}: no class)")
    return model.encode_labels(condition)


def _layers(model: AutoregressiveFlow) -> Iterator[tuple[str, nn.Module]]:
    """Every module inside a flow block, with the name of its layer."""
    for block, flow_block in model.blocks.named_children():
        for name, module in flow_block.named_modules():
            if name and not isinstance(module, nn.ModuleList):
                layer = name.split(".")[:2] if name.startswith("attn_blocks.") else [name]
                yield ".".join(["blocks", block, *layer]), module


@contextmanager
def watched(layers: Iterable[tuple[str, nn.Module]], peaks: dict[str, float]) -> Iterator[None]:
    """Note the largest magnitude that enters or leaves some modules, under the names they are given with."""
    with ExitStack() as stack:
        for name, module in layers:
            stack.callback(module.register_forward_hook(_Note(peaks, name)).remove)
        yield


class _Note:
    """A forward hook that keeps the largest magnitude it sees; NaN counts as infinite."""

    def __init__(self, peaks: dict[str, float], name: str) -> None:
        self.peaks, self.name = peaks, name

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        peak = max(float(value.abs().amax()) for value in (arguments[0], output))
        peak = math.inf if math.isnan(peak) else peak
        self.peaks[self.name] = max(peak, self.peaks.get(self.name, 0.0))
