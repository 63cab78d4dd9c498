"""A TensorRT runtime over a simulated device: the classes the backend uses, held to what the documentation says of them."""

import functools
import json
import weakref
from types import ModuleType
from typing import Any

from starflow.runtime.bundle.build_record import FlavourName
from tests.simulated_device.device import Operation, SimulatedDevice
from tests.simulated_device.engine_library import EngineLibrary, KnownEngine
from tests.simulated_device.memory import ALIGNMENT, POISON, ContractViolation, Region, byte_count

CONTEXT_BYTES = 4096  # what a context holds for itself


def simulated_tensorrt(device: SimulatedDevice, library: EngineLibrary, flavour: FlavourName) -> ModuleType:
    """The module to put into `sys.modules` in place of a flavour's."""
    real = library.flavour.trt
    module = ModuleType(flavour.replace("-", "_"))
    names = ["DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy", "ILogger", "Logger"]
    module.__version__ = real.__version__  # type: ignore[attr-defined]
    if flavour == "tensorrt-rtx":
        names += ["CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "ComputeCapability"]
        module.IRuntimeCache = RuntimeCache  # type: ignore[attr-defined]
    for name in names:
        setattr(module, name, getattr(real, name))
    module.Runtime = functools.partial(Runtime, device, library, module)  # type: ignore[attr-defined]
    return module


class Runtime:
    def __init__(self, device: SimulatedDevice, library: EngineLibrary, trt: ModuleType, logger: Any) -> None:
        self._device, self._library, self._trt, self._logger = device, library, trt, logger
        device.objects.add(self)

    def deserialize_cuda_engine(self, content: Any) -> "Engine | None":
        with self._device.lock:
            self._device.check_not_capturing("deserialize_cuda_engine")
            known = self._library.find(bytes(content))
            refusal = self._refusal(known)
            if known is None or refusal:
                self._error(f"IRuntime::deserializeCudaEngine: Error Code 1: {refusal}")
                return None
            kind = RtxEngine if hasattr(self._trt, "IRuntimeCache") else Engine
            return kind(self._device, known, self._trt, self)

    def _error(self, text: str) -> None:
        """Log an error."""
        self._logger.log(self._trt.ILogger.Severity.ERROR, text)

    def _refusal(self, known: KnownEngine | None) -> str:
        if known is None:
            return "Serialization (Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.)"
        if self._device.capability not in known.capabilities:
            return "Serialization (The engine was built for another compute capability)"
        if self._device.memory.free_bytes(self._device.current_gpu) < known.size:
            return "OutOfMemory (Requested size was not available)"
        return ""


class Engine:
    def __init__(self, device: SimulatedDevice, known: KnownEngine, trt: ModuleType, runtime: Runtime) -> None:
        self._device, self._known, self._trt, self._runtime = device, known, trt, runtime
        self._interpreter = known.interpreter
        self._names = [*self._interpreter.inputs, *self._interpreter.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(known.profiles)
        self.device_memory_size_v2 = known.scratch_bytes
        device.reserve(self, known.size)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._trt.TensorIOMode
        return modes.INPUT if name in self._interpreter.inputs else modes.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return self._known.types[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._interpreter.inputs | self._interpreter.outputs)[name].shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self._known.profiles[profile][name])

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._interpreter.aliases.get(name)

    def create_execution_context(self, how: Any) -> "Context | None":
        with self._device.lock:
            self._device.check_not_capturing("create_execution_context")
            if self._device.memory.free_bytes(self._device.current_gpu) < CONTEXT_BYTES:
                return None
            return self._context(how)

    def _context(self, strategy: Any) -> "Context":
        if strategy != self._trt.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise ContractViolation("a context with scratch memory of its own, beside what is shared")
        return Context(self._device, self._known, self)


class RtxEngine(Engine):
    """TensorRT RTX compiles as it runs, the way a runtime configuration says."""

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self._device)

    def _context(self, config: Any) -> "Context":
        super()._context(config.strategy)
        return RtxContext(self._device, self._known, self, config)


class RuntimeConfig:
    """How contexts of an engine are made; TensorRT RTX only."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.strategy: Any = None
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self._device)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels compiled for one GPU."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.kernels: set[str] = set()

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self._device.name, sorted(self.kernels)]).encode())

    def deserialize(self, content: bytes) -> bool:
        try:
            name, kernels = json.loads(content)
        except ValueError:
            return False
        if name == self._device.name:
            self.kernels |= set(kernels)
        return bool(name == self._device.name)


class Context:
    def __init__(self, device: SimulatedDevice, known: KnownEngine, engine: Engine) -> None:
        self._device, self._known, self._engine = device, known, engine
        self._interpreter = known.interpreter
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._compiled: set[object] = set()  # profiles and shapes that have run
        self._switched = 0, 0  # where the profile was chosen, and how often that stream had been waited for
        device.reserve(self, CONTEXT_BYTES)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        with self._device.lock:
            self._device.check_not_capturing("set_optimization_profile_async")
            self._device.stream(stream, "set_optimization_profile_async")
            self._switched = stream, self._device.synchronisations[stream]
            self._profile = profile if profile < len(self._known.profiles) else None
            self._shapes.clear()
            return self._profile is not None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            raise ContractViolation(f"set_input_shape of {name} before an optimisation profile is chosen")
        smallest, _, largest = self._known.profiles[self._profile][name]
        if len(shape) != len(smallest):
            return False
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            raise ContractViolation(f"{name} {list(shape)} is outside of optimisation profile {self._profile}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine._names:
            return False
        self._addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        if address % ALIGNMENT or size < self._known.scratch_bytes:
            raise ContractViolation(f"set_device_memory: {size} bytes at {address:#x} are too few or not aligned")
        self._scratch = address, size

    def execute_async_v3(self, handle: int) -> bool:
        with self._device.lock:
            self._device.counts["execute_async_v3"] += 1
            stream = self._device.stream(handle, "execute_async_v3")
            at, waits = self._switched
            if at not in (0, handle) and self._device.synchronisations[at] == waits:
                raise ContractViolation(
                    "execute_async_v3: the profile was chosen in another stream, which nobody waited for"
                )
            if not stream.capture:
                self._compile()
            elif not (self._device.capturable and self._is_compiled()):
                # The first run at a profile and shapes compiles and allocates. The capture ends with an error.
                stream.capture.invalid = True
                self._engine._runtime._error("operation not permitted when stream is capturing")
                return False
            self._device.enqueue(handle, self._operation())
            return True

    def _compile(self) -> None:
        """What only the first run at a profile and shapes does."""
        self._compiled.add(self._kernels())

    def _is_compiled(self) -> bool:
        return self._kernels() in self._compiled

    def _kernels(self) -> object:
        return self._profile, tuple(sorted(self._shapes.items()))

    def _operation(self) -> Operation:
        """One run with everything as it is set now: that is what a graph would replay."""
        interpreter = self._interpreter
        if self._profile is None or self._shapes.keys() != self._known.profiles[self._profile].keys():
            raise ContractViolation("execute_async_v3: an optimisation profile or the shape of an input is not set")
        if self._scratch is None:
            raise ContractViolation("execute_async_v3: no device memory is set")
        regions = {name: self._region(name) for name in self._engine._names}
        for output, source in interpreter.aliases.items():
            if self._addresses[output] != self._addresses[source]:
                raise ContractViolation(f"{output} and {source} are one cache and have two addresses")
        scratch = self._device.memory.region(*self._scratch, "scratch memory")
        self._check_apart(regions, scratch)

        def run() -> None:
            for name in interpreter.inputs:
                regions[name].check_written(f"input {name}")
            arrays = {name: self_array(name) for name in regions}
            interpreter.run(
                {name: arrays[name] for name in interpreter.inputs},
                {name: arrays[name] for name in interpreter.outputs},
            )
            for name in interpreter.outputs:
                regions[name].mark_written()
            scratch.content[:] = POISON

        shapes = {name: self._shape(name) for name in regions}
        types = {name: buffer.dtype for name, buffer in (interpreter.inputs | interpreter.outputs).items()}

        def self_array(name: str) -> Any:
            return regions[name].array(shapes[name], types[name])

        reads = tuple(regions[name] for name in interpreter.inputs)
        writes = (*(regions[name] for name in interpreter.outputs), scratch)
        return Operation(f"a run of {self._known.graph.name}", run, reads, writes, (weakref.ref(self),))

    def _region(self, name: str) -> Region:
        if name not in self._addresses:
            raise ContractViolation(f"execute_async_v3: {name} has no address")
        buffer = (self._interpreter.inputs | self._interpreter.outputs)[name]
        size = byte_count(self._shape(name), buffer.dtype)
        region = self._device.memory.region(self._addresses[name], size, name)
        if self._addresses[name] % ALIGNMENT:
            raise ContractViolation(f"{name}: {self._addresses[name]:#x} is not aligned to {ALIGNMENT} bytes")
        return region

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        shape = (self._interpreter.inputs | self._interpreter.outputs)[name].shape
        if -1 not in shape:
            return shape
        # The condition may be left out of a step; `previous` never is.
        tokens = {size for given in self._shapes.values() for size in given[1:2] if size}
        assert len(tokens) == 1, "every dynamic input of a step graph is [rows, S, width]"
        return tuple(next(iter(tokens)) if size == -1 else size for size in shape)

    def _check_apart(self, regions: dict[str, Region], scratch: Region) -> None:
        aliases = self._interpreter.aliases
        for output in self._interpreter.outputs:
            for name, region in regions.items():
                pair = {output, name} if output in aliases else set()
                if name != output and pair != {output, aliases.get(output)} and region.overlaps(regions[output]):
                    raise ContractViolation(f"output {output} overlaps {name}")
        for name, region in regions.items():
            if region.overlaps(scratch):
                raise ContractViolation(f"{name} lies in the scratch memory")


class RtxContext(Context):
    """A context that compiles kernels, or finds them in its configuration's cache."""

    def __init__(self, device: SimulatedDevice, known: KnownEngine, engine: Engine, config: RuntimeConfig) -> None:
        super().__init__(device, known, engine)
        self._config = config

    def is_stream_capturable(self, stream: int) -> bool:
        """Not while kernels are still to be compiled, nor if TensorRT captures its runs itself."""
        modes = (self._config.cuda_graph_strategy, self._config.dynamic_shapes_kernel_specialization_strategy)
        return (
            [mode.name for mode in modes] == ["DISABLED", "EAGER"] and self._device.capturable and self._is_compiled()
        )

    def _compile(self) -> None:
        cache = self._config.cache
        if cache is not None and not self._is_compiled():
            kernel = f"{self._known.digest[:12]} {sorted(self._shapes.items())}"
            self._device.counts["kernels found" if kernel in cache.kernels else "kernels compiled"] += 1
            cache.kernels.add(kernel)
        super()._compile()
