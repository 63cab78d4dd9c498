"""Does a set of tensors fit a model: a comparison of names and shapes."""

from collections.abc import Mapping
from fnmatch import fnmatch

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.flow import Flow

Shape = tuple[int, ...]


def check_tensors(source: str, shapes: Mapping[str, Shape], model: Flow, *, options: str = "config.json") -> None:
    """Compare tensors with a model's parameters.

    Buffers the model does not read may be absent. Where they are present, their shapes are compared as well: in a model
    with rotary positions nothing else tells the training size and the number of text tokens.

    Args:
        source: The file, for the message.
        model: May be on the meta device.
        options: What sets the model's sizes, for the message.

    Raises:
        CheckpointError: a tensor is missing, surplus or mis-shaped; it is named with the shapes found and expected.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(shapes.keys() - expected.keys()):
        for pattern, shape in model.unused_buffers.items():
            if fnmatch(name, pattern):
                expected[name] = shape or shapes[name]
    names = (*expected, *sorted(shapes.keys() - expected.keys()))
    wrong = [name for name in names if shapes.get(name) != expected.get(name)]
    if wrong:
        others = f"; {len(wrong) - 1} other tensors do not fit" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{source}: {wrong[0]}: found {_described(shapes.get(wrong[0]))}, expected"
            f" {_described(expected.get(wrong[0]))}{others}; check {options}"
        )


def _described(shape: Shape | None) -> str:
    return "no such tensor" if shape is None else f"shape {list(shape)}"
