"""Do a continuous flow's activations fit into float16? See `starflow.export.activations`."""

import torch

from starflow.export.activations import ActivationData, drawn_conditions, layers_of, peaks_of
from starflow.runtime.plain.errors import UsageError
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.tensor_file import CheckpointTensors

STEPS = 8


def activation_peaks(
    config: CheckpointConfig, model: ContinuousFlow, tensors: CheckpointTensors, data: ActivationData | None = None
) -> dict[str, float]:
    """Largest magnitude of any activation, by layer.

    The network runs on points of the straight paths from noise to `data`; without data along its own paths, guided where it can
    be, and on standard normal features where it is conditioned on any.
    """
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        if data is None:
            y, null = drawn_conditions(config, model, 2, generator)
            noise = torch.randn(model.noise_shape(2), generator=generator)
            model.reverse(noise, y, null, guidance=0.0 if y is None else 1.0, steps=STEPS)
        else:
            _along_lines(model, data, generator)

    return peaks_of(model, tensors, layers_of(model), run)


def _along_lines(model: ContinuousFlow, data: ActivationData, generator: torch.Generator) -> None:
    if data.x.shape[1:] != model.noise_shape(1)[1:]:
        raise UsageError(f"activation data: x is {list(data.x.shape)}, expected {['N', *model.noise_shape(1)[1:]]}")
    noise = torch.randn(data.x.shape, generator=generator)
    for index in range(STEPS + 1):
        t = index / STEPS
        model((1 - t) * noise + t * data.x, torch.full((len(noise),), t), data.condition)
