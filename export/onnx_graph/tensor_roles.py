"""What a graph's inputs and outputs mean, read off the graph itself."""

import onnx

from starflow.export.onnx_graph.builder import ONNX_TYPES
from starflow.runtime.bundle.graph_spec import TensorSpec

# The number of condition tokens M is a dynamic size of its own: an engine's steps, which come after the condition, take none, and
# so do not project what they ignore. Everyone else gives as many as there are tokens.
CONDITION_TOKENS = "M"
UPDATED_BY = {"samples": "samples_out"}


def graph_tensors(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The manifest's description of a graph's inputs and outputs, in graph order."""
    inputs = tuple(_spec(value, _input_role(value.name)) for value in model.graph.input)
    outputs = tuple(_spec(value, _output_role(value.name)) for value in model.graph.output)
    return inputs, outputs


def _input_role(name: str) -> tuple[str, str | None]:
    kind, _, index = name.partition(".")
    if kind in ("key", "value"):
        return "cache", f"{kind}_out.{index}"
    return name, UPDATED_BY.get(name)


def _output_role(name: str) -> tuple[str, str | None]:
    if name.endswith("_next"):  # what goes back to the input it is named after
        return name.removesuffix("_next"), None
    kind = name.partition(".")[0]
    roles = {"key_out": "cache", "value_out": "cache", "samples_out": "samples", "x": "token", "tokens": "token"}
    return roles.get(kind, kind), None


def _spec(value: onnx.ValueInfoProto, role: tuple[str, str | None]) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = next(dtype for dtype, code in ONNX_TYPES.items() if code == tensor.elem_type)
    # Whatever a graph calls a dynamic size, it is the number of tokens S in every run that the manifest promises.
    shape = tuple("S" if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec.model_validate(
        {"name": value.name, "dtype": dtype.name, "shape": shape, "role": role[0], "updated_by": role[1]}
    )
