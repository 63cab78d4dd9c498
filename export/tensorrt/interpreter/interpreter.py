"""`NetworkInterpreter`: runs a parsed network in NumPy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter import arithmetic, attention, cache, images, movement, reductions
from starflow.export.tensorrt.interpreter.cache import cache_pairs
from starflow.export.tensorrt.interpreter.constants import Constants
from starflow.export.tensorrt.interpreter.layers import Compute, Kernel, NetworkLayer, NetworkTensor, read_layers
from starflow.export.tensorrt.interpreter.number_types import buffer_dtype, rounding_to, working_dtype
from starflow.export.tensorrt.parse import ParsedGraph
from starflow.runtime.plain.errors import ExportError

KERNELS: dict[str, Kernel] = (
    arithmetic.KERNELS | movement.KERNELS | reductions.KERNELS | images.KERNELS | attention.KERNELS | cache.KERNELS
)
# Their results hold nothing that was not rounded before.
_EXACT = frozenset(movement.KERNELS) | {"RESIZE", "SELECT", "ATTENTION_OUTPUT", "KV_CACHE_UPDATE"}

Observe = Callable[[NetworkLayer, NDArray], None]


@dataclass(frozen=True)
class Buffer:
    """What memory a network input or output needs: NumPy type, and sizes, -1 where the number of tokens decides."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def fits(self, array: NDArray) -> bool:
        """Whether an array can be this input or output."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(expected in (-1, found) for expected, found in zip(self.shape, array.shape, strict=True))
        )


class _Step(NamedTuple):
    """One layer to compute: from which slots, into which, and which nobody needs afterwards."""

    compute: Compute
    sources: tuple[int, ...]
    target: int
    finished: tuple[int, ...]
    layer: NetworkLayer


class NetworkInterpreter:
    """Executes what TensorRT's parser made of a graph.

    Constants are folded once; what is left is compiled into a list of steps, so that a run costs little more than its NumPy
    calls. The documentation's contract holds: a cache output is its input's memory, updated in place.

    Args:
        parsed: The network; it is kept, since constants point into the parser's memory.
        rounding: Whether each layer's result is rounded to the type the network gives it. Without, everything is
            float32, inputs and outputs of 16 bits too.

    Raises:
        ExportError: a layer's kind, mode or attribute is not known, or a cache is not updated as TensorRT requires.
    """

    def __init__(self, parsed: ParsedGraph, *, rounding: bool = False) -> None:
        self.parsed, self._rounding = parsed, rounding
        network = parsed.network
        inputs = [NetworkTensor.of(network.get_input(index)) for index in range(network.num_inputs)]
        outputs = [NetworkTensor.of(network.get_output(index)) for index in range(network.num_outputs)]
        self.inputs = {tensor.name: self._buffer(tensor) for tensor in inputs}
        self.outputs = {tensor.name: self._buffer(tensor) for tensor in outputs}
        layers = read_layers(parsed)
        self.aliases = cache_pairs(layers, self.inputs, self.outputs)  # by output, the input whose memory it shares
        # Slot 0 stays None: an optional input that is not set.
        self._slots = {name: slot for slot, name in enumerate(self.inputs, 1)}
        self._values: list[NDArray | None] = [None] * (1 + len(self.inputs))
        with np.errstate(all="ignore"):  # as in `run`
            self._steps = self._compile(layers)
        self._checked: set[tuple[tuple[int, ...], ...]] = set()

    def _buffer(self, tensor: NetworkTensor) -> Buffer:
        return Buffer(tensor.name, buffer_dtype(tensor.dtype, rounding=self._rounding), tensor.shape)

    def run(
        self,
        inputs: Mapping[str, NDArray],
        outputs: Mapping[str, NDArray] | None = None,
        observe: Observe | None = None,
    ) -> dict[str, NDArray]:
        """Run the network once: every output by name.

        Args:
            inputs: Every input, of the types and sizes `self.inputs` states. Caches are updated in these arrays.
            outputs: Arrays to write outputs into, after everything is computed; one may be the memory of an input. An aliased
                output may be left out, or must be its input's array. An output that is left out gets a new array.
            observe: Called with each layer and its value (before it is reused; copy to keep).

        Raises:
            ExportError: an input or output is missing or does not fit, or a layer fails on these values.
        """
        given = outputs or {}
        arrays = self._arrays(inputs)
        signature = tuple(array.shape for array in arrays)
        check = signature not in self._checked
        values = self._values.copy()
        values[1 : 1 + len(arrays)] = arrays
        with np.errstate(all="ignore"):  # values that are not finite are the caller's to judge
            for step in self._steps:
                try:
                    value = step.compute(*[values[slot] for slot in step.sources])
                except (ValueError, IndexError, TypeError) as error:
                    raise ExportError(f"{self._at(step.layer)}: {error}") from error
                if check:
                    self._check(step.layer, value)
                if observe:
                    observe(step.layer, value)
                values[step.target] = value
                for slot in step.finished:
                    values[slot] = None
            self._checked.add(signature)
            return {name: self._deliver(name, values[self._slots[name]], inputs, given) for name in self.outputs}

    def constants(self) -> Iterator[tuple[str, NDArray]]:
        """Every value that depends on no input, by name."""
        return ((name, value) for name, slot in self._slots.items() if (value := self._values[slot]) is not None)

    # Running

    def _arrays(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        arrays = []
        for name, buffer in self.inputs.items():
            array = inputs.get(name)
            if array is None or not buffer.fits(array):
                found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise ExportError(
                    f"{self.parsed.place}: input {name} is {found}, expected {buffer.dtype} {list(buffer.shape)}"
                )
            arrays.append(array)
        return arrays

    def _deliver(
        self, name: str, value: NDArray | None, inputs: Mapping[str, NDArray], given: Mapping[str, NDArray]
    ) -> NDArray:
        assert value is not None
        target = given.get(name)
        if name in self.aliases:
            memory = inputs[self.aliases[name]]
            if target is not None and target is not memory and not _same_memory(target, memory):
                raise ExportError(
                    f"{self.parsed.place}: output {name} must have the memory of input {self.aliases[name]}"
                )
            return memory
        buffer = self.outputs[name]
        if target is None:
            return np.array(value, buffer.dtype)
        if target.dtype != buffer.dtype or target.shape != value.shape:
            raise ExportError(
                f"{self.parsed.place}: output {name} is {buffer.dtype} {list(value.shape)}, "
                f"its array {target.dtype} {list(target.shape)}"
            )
        target[...] = value
        return target

    def _check(self, layer: NetworkLayer, value: NDArray) -> None:
        """The value must be of the type and shape that TensorRT worked out for it; done once for each set of input sizes."""
        expected = Buffer(layer.output.name, working_dtype(layer.output.dtype), layer.output.shape)
        if not expected.fits(value):
            raise ExportError(
                f"{self._at(layer)}: got {value.dtype} {list(value.shape)}, "
                f"TensorRT has {expected.dtype} {list(expected.shape)}"
            )

    def _at(self, layer: NetworkLayer) -> str:
        return f"{layer.where}: layer {layer.name} ({layer.kind})"

    # Compiling

    def _compile(self, layers: list[NetworkLayer]) -> list[_Step]:
        constants = Constants(self.parsed)
        steps: list[_Step] = []
        dynamic = set(self.inputs)
        for layer in layers:
            slot = self._slots[layer.output.name] = len(self._values)
            sources = tuple(0 if tensor is None else self._slots[tensor.name] for tensor in layer.inputs)
            self._values.append(None)
            if layer.kind == "CONSTANT":
                self._values[slot] = constants.read(layer)
                continue
            compute = self._rounded(layer, self._widened(layer))
            if any(tensor is not None and tensor.name in dynamic for tensor in layer.inputs):
                steps.append(_Step(compute, sources, slot, (), layer))
                dynamic.add(layer.output.name)
            else:
                self._values[slot] = compute(*[self._values[source] for source in sources])
        return self._with_lifetimes(steps)

    def _widened(self, layer: NetworkLayer) -> Compute:
        """The layer's function, for inputs of the network that are kept in 16 bits too."""
        if layer.kind not in KERNELS:
            layer.refuse("this kind of layer is not known")
        compute = KERNELS[layer.kind](layer)
        narrow = [
            index
            for index, tensor in enumerate(layer.inputs)
            if tensor is not None
            and tensor.name in self.inputs
            and self.inputs[tensor.name].dtype != working_dtype(tensor.dtype)
        ]
        # The cache itself is written to, not computed with.
        if not narrow or layer.kind == "KV_CACHE_UPDATE":
            return compute

        def widen(*values: NDArray) -> NDArray:
            return compute(
                *(value.astype(np.float32) if index in narrow else value for index, value in enumerate(values))
            )

        return widen

    def _rounded(self, layer: NetworkLayer, compute: Compute) -> Compute:
        to_nearest = rounding_to(layer.output.dtype) if self._rounding and layer.kind not in _EXACT else None
        if to_nearest is None:
            return compute
        return lambda *values: to_nearest(compute(*values))

    def _with_lifetimes(self, steps: list[_Step]) -> list[_Step]:
        """Drop each value after its last use: a long run's activations would otherwise stay in memory all together."""
        kept = {self._slots[name] for name in self.outputs}
        computed = {step.target for step in steps} - kept
        finished: list[_Step] = []
        seen: set[int] = set()
        for step in reversed(steps):
            last = computed.intersection((*step.sources, step.target)) - seen
            seen |= last
            finished.append(step._replace(finished=tuple(last)))
        return finished[::-1]


def _same_memory(one: NDArray, other: NDArray) -> bool:
    return one.__array_interface__["data"][0] == other.__array_interface__["data"][0] and one.shape == other.shape
