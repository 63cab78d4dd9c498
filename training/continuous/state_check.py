"""Does a set of tensors fit a velocity network, and if not, which configuration field disagrees."""

from collections.abc import Mapping

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.continuous.model import VelocityNetwork

# The fields behind a parameter's presence and shape, by a part of its name; the first match counts.
FIELDS = {
    "class_embed": ("num_classes", "channels"),
    "proj_txt": ("txt_dim", "txt_size", "channels"),
    "proj_in": ("channels", "in_channels", "patch_size", "dimensions"),
    "proj_out": ("channels", "in_channels", "patch_size", "dimensions"),
    "layers.": ("layers", "channels", "network"),
}


def check_velocity_tensors(source: str, shapes: Mapping[str, tuple[int, ...]], model: VelocityNetwork) -> None:
    """Compare the tensors of `source` with a network's parameters; `model` may be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, surplus or mis-shaped; it is named with the fields that may be wrong.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in (*expected, *sorted(shapes.keys() - expected.keys())):
        found, wanted = shapes.get(name), expected.get(name)
        if found == wanted:
            continue
        if found is None:
            what = f"{name} {list(wanted or ())} is missing"
        elif wanted is None:
            what = f"{name} {list(found)} is surplus"
        else:
            what = f"{name} is {list(found)}, the configuration makes it {list(wanted)}"
        fields = next((fields for part, fields in FIELDS.items() if part in name), ("channels", "network"))
        known = [field for field in fields if field in type(model.config).model_fields]
        raise CheckpointError(f"{source}: {what}; check {' or '.join(known)}")
