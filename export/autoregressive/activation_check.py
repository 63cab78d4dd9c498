"""Do an autoregressive flow's activations fit into float16? See `starflow.export.activations`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from starflow.export.activations import ActivationData, peaks_of
from starflow.export.streamed_model import Tensors
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import StarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig

WORK = 1e12  # multiply-adds of a check on drawn samples: half a minute on two cores
SMALLEST_SIDE = 8  # tokens; large models are checked on smaller images, but no smaller than this
MIN_PASSES, MAX_PASSES = 2, 32


def activation_peaks(
    config: CheckpointConfig, model: AutoregressiveFlow, tensors: Tensors, data: ActivationData | None = None
) -> dict[str, float]:
    """Largest magnitude of any activation, by transformer layer or projection.

    Args:
        model: Its model, on the meta device, where it returns.
        data: What to run on, in the normalising direction. None draws samples by Jacobi iteration over the whole sequence:
            until it converges for models of up to some ten million parameters, a few passes over smaller images for
            larger ones. Models conditioned on features then get standard normal ones.
    """

    def run() -> None:
        if data is None:
            _draw(config, model)
        else:
            model(data.x, _encoded(model, data.condition))

    return peaks_of(model, tensors, _layers(model), run)


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
