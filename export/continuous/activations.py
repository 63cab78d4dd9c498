"""Do a velocity network's activations fit into float16? The other family's check, along the paths of this one."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from starflow.export.autoregressive.activation_check import ActivationData, watched
from starflow.runtime.plain.errors import UsageError
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.tensor_file import CheckpointTensors

STEPS = 8


def velocity_peaks(
    config: CheckpointConfig, model: ContinuousFlow, tensors: CheckpointTensors, data: ActivationData | None = None
) -> dict[str, float]:
    """Largest magnitude of any activation, by layer.

    Args:
        config: The checkpoint's.
        model: Its network, on the meta device, where it returns.
        tensors: Its parameters.
        data: What to run on: points on the straight paths from noise to these. None follows the network's own paths, guided
            where it can be; networks conditioned on features then get standard normal ones.
    """
    peaks: dict[str, float] = {}
    model.load_state_dict(tensors.load(model), assign=True)
    try:
        with watched(_layers(model), peaks), torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            if data is None:
                y, null = _conditions(config, model, generator)
                noise = torch.randn(model.noise_shape(2), generator=generator)
                model.reverse(noise, y, null, guidance=0.0 if y is None else 1.0, steps=STEPS)
            else:
                _along_lines(model, data, generator)
    finally:
        model.to("meta")
    return peaks


def _along_lines(model: ContinuousFlow, data: ActivationData, generator: torch.Generator) -> None:
    if data.x.shape[1:] != model.noise_shape(1)[1:]:
        raise UsageError(
            f"activation data {list(data.x.shape)}: this model's are [N, {list(model.noise_shape(1)[1:])}]"
        )
    noise = torch.randn(data.x.shape, generator=generator)
    for index in range(STEPS + 1):
        t = index / STEPS
        model((1 - t) * noise + t * data.x, torch.full((len(noise),), t), data.condition)


def _conditions(
    config: CheckpointConfig, model: ContinuousFlow, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Two conditions and the null condition."""
    given = config.conditioning
    if given.kind == "class":
        return torch.arange(2) % model.num_classes, torch.full((1,), model.num_classes)
    if given.kind == "features":
        return torch.randn((2, given.tokens, given.width), generator=generator), torch.zeros(
            1, given.tokens, given.width
        )
    return None, None


def _layers(model: ContinuousFlow) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            yield ".".join(name.split(".")[: 2 if name.startswith("layers.") else 1]), module
