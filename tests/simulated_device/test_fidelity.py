"""Is what is simulated there at all? Names and numbers of arguments, compared with the real modules."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cuda.bindings import runtime as real_cuda

from starflow.runtime.backends.cuda.device import Gpu
from starflow.runtime.backends.tensorrt.engine import TensorrtRuntime
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from tests.simulated_device import tensorrt_runtime as simulated
from tests.simulated_device.cuda_runtime import simulated_cuda
from tests.simulated_device.device import SimulatedDevice

CLASSES = {
    "Runtime": simulated.Runtime,
    "ICudaEngine": simulated.RtxEngine,
    "IExecutionContext": simulated.RtxContext,
    "IRuntimeConfig": simulated.RuntimeConfig,
    "IRuntimeCache": simulated.RuntimeCache,
}
PROPERTIES = {
    "ICudaEngine": ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"),
    "IRuntimeConfig": ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"),
}


def documented_arguments(function: Any) -> set[int]:
    """Numbers of arguments that the signatures in a function's documentation take, without `self`."""
    found = set()
    for arguments in re.findall(rf"\b{function.__name__}\((.*?)\)(?: ->|\n|$)", function.__doc__):
        names = [each for each in re.split(r",(?![^\[]*\])", arguments) if each.strip()]
        found.add(len([name for name in names if not name.strip().startswith(("self", "*"))]))
    return found


def positional(function: Any) -> int:
    return len([each for each in inspect.signature(function).parameters if each != "self"])


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    return ((name, each) for name, each in inspect.getmembers(kind, callable) if not name.startswith("_"))


@pytest.mark.parametrize("name", CLASSES)
def test_tensorrt_has_every_simulated_method(name: str) -> None:
    real = getattr(load_flavour("tensorrt-rtx").trt, name)
    for method, function in public_methods(CLASSES[name]):
        assert positional(function) in documented_arguments(getattr(real, method)), f"{name}.{method}"


@pytest.mark.parametrize("name", PROPERTIES)
def test_tensorrt_has_every_simulated_property(name: str) -> None:
    real = getattr(load_flavour("tensorrt-rtx").trt, name)
    assert not set(PROPERTIES[name]) - set(dir(real))


def test_cuda_has_every_simulated_function() -> None:
    module = simulated_cuda(SimulatedDevice())
    functions = [name for name, each in vars(module).items() if inspect.isfunction(each)]
    assert functions
    for name in functions:
        count = positional(inspect.unwrap(getattr(module, name)))
        assert count in documented_arguments(getattr(real_cuda, name)), name


def test_the_real_runtime_takes_a_mapped_file_and_says_why_it_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "block0.engine"
    path.write_bytes(b"no engine" * 100)
    runtime = TensorrtRuntime(load_flavour("tensorrt-rtx"), cast(Gpu, None))
    assert runtime.deserialize(path) is None
    assert "Serialization" in runtime.log.last_error()
