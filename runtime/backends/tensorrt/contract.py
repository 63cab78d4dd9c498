"""Checks that an engine has the inputs and outputs of the graph it belongs to.

An engine carries names, types and shapes, but not the graph it was built from. Addresses are passed without a size, so an engine
of another graph would not fail: it would write beyond its buffers.
"""

from collections.abc import Sequence
from typing import Any

from starflow.runtime.bundle.build_record import Profile
from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec, fixed_shape
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.plain.errors import BundleError

TENSORRT_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}


def check_engine(
    trt: Any, engine: Any, graph: GraphSpec | NetworkSpec, profiles: Sequence[Profile], where: str, rebuild: str
) -> None:
    """Compare inputs, outputs and optimisation profiles of a `trt.ICudaEngine` with those of its graph.

    Messages name the engine by `where`, its path, and end with `rebuild`, the command that mends it.

    Raises:
        BundleError: they differ; the message names the tensor.
    """

    def same(what: str, found: object, expected: object) -> None:
        if found != expected:
            raise BundleError(f"{where}: {what} is {found}, the manifest says {expected}; {rebuild}")

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
    for name in sorted(specs.keys() ^ set(names)):
        found, expected = ("missing", "there") if name in specs else ("there", "missing")
        same(f"tensor {name}", found, expected)
    same("the number of optimisation profiles", engine.num_optimization_profiles, len(profiles))
    for name, spec in specs.items():
        mode = trt.TensorIOMode.INPUT if spec in graph.inputs else trt.TensorIOMode.OUTPUT
        same(f"{name}'s direction", engine.get_tensor_mode(name), mode)
        same(f"{name}'s location", engine.get_tensor_location(name), trt.TensorLocation.DEVICE)
        same(f"{name}'s type", engine.get_tensor_dtype(name), getattr(trt.DataType, TENSORRT_TYPES[spec.dtype]))
        same(f"{name}'s shape", _sizes(engine.get_tensor_shape(name)), fixed_shape(spec, -1))
    for spec in graph.inputs:
        if "S" in spec.shape:
            for index, profile in enumerate(profiles):
                if index == 0 and takes_no_condition(engine, spec):
                    continue
                shapes = [_sizes(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
                range_ = [fixed_shape(spec, count) for count in (profile.minimum, profile.optimum, profile.maximum)]
                same(f"the range of {spec.name} in optimisation profile {index}", shapes, range_)
    updated = {spec.updated_by: spec.name for spec in graph.inputs if spec.updated_by}
    for output in graph.outputs:
        same(
            f"the input that {output.name} updates",
            engine.get_aliased_input_tensor(output.name),
            updated.get(output.name),
        )


def takes_no_condition(engine: Any, spec: TensorSpec) -> bool:
    """Whether an input is the condition and steps (profile 0) take none of its tokens: an engine need not project them in vain."""
    if spec.role != "condition" or "S" not in spec.shape:
        return False
    ranges = engine.get_tensor_profile_shape(spec.name, 0)
    return all(_sizes(shape) == fixed_shape(spec, 0) for shape in ranges)


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)
