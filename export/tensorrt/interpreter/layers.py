"""The layers of a parsed network as plain Python: kind, name, tensors, and the object that holds the attributes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from types import ModuleType
from typing import Any, Never

from numpy.typing import NDArray

from starflow.export.tensorrt.parse import ParsedGraph
from starflow.runtime.plain.errors import ExportError


@dataclass(frozen=True)
class NetworkTensor:
    """A tensor of the network: its name, TensorRT's name of its type (`FLOAT`, `HALF`, ...), and sizes, -1 where dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> "NetworkTensor":
        return cls(tensor.name, tensor.dtype.name, tuple(tensor.shape))


@dataclass(frozen=True)
class NetworkLayer:
    """A layer with one output."""

    kind: str  # TensorRT's layer type, such as `ELEMENTWISE`
    name: str  # the parser derives it from the ONNX node's
    inputs: tuple[NetworkTensor | None, ...]  # by index; None where an optional one is not set
    output: NetworkTensor
    attributes: Any  # the layer object, of its own class
    where: str  # graph and flow block, for messages

    def has(self, index: int) -> bool:
        """Whether the input of this index is set."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> NetworkTensor:
        """The input of this index, which must be set."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            self.refuse(f"input {index} is not set")
        return found

    def choice(self, attribute: str) -> str:
        """The name of an attribute that is one of TensorRT's enumerations."""
        return str(getattr(self.attributes, attribute).name)

    def refuse(self, reason: str) -> Never:
        """Raise the error that this layer cannot be executed."""
        raise ExportError(
            f"{self.where}: layer {self.name} ({self.kind}): {reason}; the network interpreter does not support it"
        )


# A kernel reads a layer's attributes once, and returns the function that computes the layer.
# Takes the layer's inputs by index, None where an optional one is not set. The result may be a view of an input.
Compute = Callable[..., NDArray]
Kernel = Callable[[NetworkLayer], Compute]


def axes_of(mask: int) -> tuple[int, ...]:
    """TensorRT's bit mask of axes as axes."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)


def read_layers(parsed: ParsedGraph) -> list[NetworkLayer]:
    """Every layer of a network, in an order in which inputs come before their use (the parser's is not such an order).

    Raises:
        ExportError: a layer's kind is not known, or it has several outputs.
    """
    network = parsed.network
    layers = [_read_layer(parsed, network.get_layer(index)) for index in range(network.num_layers)]
    available = {network.get_input(index).name for index in range(network.num_inputs)}
    return _ordered(layers, available, parsed.place)


def _read_layer(parsed: ParsedGraph, layer: Any) -> NetworkLayer:
    # Before the cast: an activation's own `type` hides the layer's.
    kind = layer.type.name
    outputs = [NetworkTensor.of(layer.get_output(index)) for index in range(layer.num_outputs)]
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    inputs = tuple(None if tensor is None else NetworkTensor.of(tensor) for tensor in tensors)
    found = NetworkLayer(kind, layer.name, inputs, outputs[0], layer, parsed.place)
    if len(outputs) != 1:
        found.refuse(f"it has {len(outputs)} outputs, not one")
    # The bindings hand every layer out as ILayer; its own class has the attributes.
    own = _layer_classes(parsed.flavour.trt).get(f"I{kind.replace('_', '')}LAYER")
    if own is None:
        found.refuse("this kind of layer is not known")
    layer.__class__ = own
    return found


@cache
def _layer_classes(trt: ModuleType) -> dict[str, type]:
    """TensorRT's classes by their names in capitals, `IKVCACHEUPDATELAYER` for KV_CACHE_UPDATE."""
    return {name.upper(): getattr(trt, name) for name in dir(trt) if name.endswith("Layer")}


def _ordered(layers: Iterable[NetworkLayer], available: set[str], where: str) -> list[NetworkLayer]:
    producers: dict[str, NetworkLayer] = {}
    sorter = TopologicalSorter[str]()
    for layer in layers:
        if layer.output.name in producers or layer.output.name in available:
            layer.refuse(f"its output {layer.output.name} has the name of another tensor")
        producers[layer.output.name] = layer
        sorter.add(layer.output.name, *(t.name for t in layer.inputs if t is not None and t.name not in available))
    try:
        names = list(sorter.static_order())
    except CycleError as error:
        raise ExportError(
            f"{where}: layers read each other's outputs in a circle: {', '.join(error.args[1])}"
        ) from None
    for name in names:
        if name not in producers:
            raise ExportError(f"{where}: a layer reads {name}, which no layer makes")
    return [producers[name] for name in names]
