"""Does the shape of data fit a model; known before the data are read, if a recipe names it."""

from starflow.training.config import ModelConfig
from starflow.training.continuous.config import ContinuousMlpConfig


def shape_fault(shape: tuple[int, ...], model: ModelConfig) -> str | None:
    """Why a model does not take data of a shape, [C, H, W] or [D]; None if it does."""
    if isinstance(model, ContinuousMlpConfig):
        expected: tuple[int, ...] = (model.dimensions,)
    else:
        expected = (model.in_channels, model.img_size, model.img_size)
    return None if shape == expected else f"model: takes {_described(expected)}, but the data are {_described(shape)}"


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"points of {shape[0]} dimensions"
    return f"{shape[0]} channel(s) of {shape[2]}x{shape[1]}"
