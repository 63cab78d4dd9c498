"""In which precision an engine computes a network beside the flow, which is written in float32.

A stated rule on measured values. The network runs in float32 on what a sampler gives it (`network_inputs`), and every value's
largest magnitude is noted. Where magnitudes stay within half of float16's range, products and what follows from them become
float16 (`half_precision`). That network, rounding as an engine would, runs on the same inputs: if its output is off by more than
`MOST_ERROR`, all of it stays float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from starflow.export.tensorrt.half_precision import halved
from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.interpreter.layers import NetworkLayer
from starflow.export.tensorrt.network_inputs import Inputs, NetworkRun, network_runs
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.named_network import NamedNetwork, networks_of

MOST_ERROR = 2.5e-3  # relative; half of what `starflow verify` allows fp16, since a choice sees some inputs, not all


@dataclass(frozen=True)
class EngineGraph:
    """The graph that an engine is built from, over the weights of the network's own graph."""

    model: onnx.ModelProto
    precision: Literal["fp16", "mixed", "fp32"]  # of its products: all float16, some float32, all float32


@dataclass(frozen=True)
class PrecisionChoice:
    """What was measured of a network. It holds for the network's graphs of all batch sizes, whose values have the same names."""

    peaks: Mapping[str, float]  # largest magnitude of each value by name, weights included
    error: float  # relative, of the output of the engine's graph against float32
    narrow: bool  # whether float16 is exact enough
    outputs: Sequence[NDArray]  # of the engine's graph, as TensorRT's parser understood it, rounding where it rounds

    def graph(self, path: Path) -> EngineGraph:
        """The graph to build from the network's graph at `path`."""
        model = onnx.load(path, load_external_data=False)
        if not self.narrow:
            return EngineGraph(model, "fp32")
        half, wide = halved(model, self.peaks)
        return EngineGraph(half, "mixed" if wide else "fp16")


def choose_precision(flavour: Flavour, path: Path, inputs: Sequence[Inputs]) -> PrecisionChoice:
    """Measure in which precision a network can be computed.

    Args:
        path: Its graph.
        inputs: What a sampler gives it, for some runs.

    Raises:
        ExportError: TensorRT's parser refuses the graph, or the interpreter does not know a layer.
    """
    model = onnx.load(path, load_external_data=False)
    expected, peaks = _measured(NetworkInterpreter(parse_graph(flavour, path)), inputs)
    peaks |= _weight_peaks(model, path.parent)
    interpreter = NetworkInterpreter(parse_graph(flavour, path, model=halved(model, peaks)[0]), rounding=True)
    found = [_output(interpreter.run(each)) for each in inputs]
    error = relative_error(found, expected)
    if not error <= MOST_ERROR:
        return PrecisionChoice(peaks, 0.0, False, expected)
    return PrecisionChoice(peaks, error, True, found)


class NetworkChoices:
    """The choices for the networks of a bundle at one shape, measured where batches are smallest, when they are asked for."""

    def __init__(self, place: Bundle, flavour: Flavour) -> None:
        self._place, self._flavour = place, flavour
        self._networks = {network.words: network.spec for network in networks_of(place.manifest)}
        self._chosen: dict[str, PrecisionChoice] = {}

    @cached_property
    def _runs(self) -> dict[str, list[NetworkRun]]:
        return network_runs(self._place)

    def expected(self, network: NamedNetwork) -> list[NDArray]:
        """Outputs of ONNX Runtime in float32, in the runs that `of` makes the choice by."""
        return [run.output for run in self._runs[self._networks[network.words].file.path]]

    def of(self, network: NamedNetwork) -> PrecisionChoice:
        """The choice for a network, at any batch size; see `choose_precision` for the errors."""
        if network.words not in self._chosen:
            file = self._networks[network.words].file
            inputs = [run.inputs for run in self._runs[file.path]]
            self._chosen[network.words] = choose_precision(self._flavour, self._place.path(file), inputs)
        return self._chosen[network.words]


def relative_error(found: Sequence[NDArray], expected: Sequence[NDArray]) -> float:
    """|found - expected| / |expected| over all runs, Euclidean norm; not finite if a value is not."""
    with np.errstate(all="ignore"):
        difference = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(np.square(b.astype(np.float64)).sum()) for b in expected)
    return float(np.sqrt(difference / max(size, np.finfo(float).tiny)))


def _output(values: Mapping[str, NDArray]) -> NDArray:
    (output,) = values.values()
    return output


def _measured(interpreter: NetworkInterpreter, inputs: Sequence[Inputs]) -> tuple[list[NDArray], dict[str, float]]:
    """Outputs, and the largest magnitude of every floating-point value of the network by name."""
    peaks: dict[str, float] = {}

    def note(name: str, value: NDArray) -> None:
        if value.dtype.kind == "f" and value.size:
            peak = float(np.abs(value).max())
            peaks[name] = max(peaks.get(name, 0.0), peak if np.isfinite(peak) else float("inf"))

    def observe(layer: NetworkLayer, value: NDArray) -> None:
        note(layer.output.name, value)

    outputs = []
    for each in inputs:
        outputs.append(_output(interpreter.run(each, observe=observe)))
        for name, value in each.items():
            note(name, value)
    for name, value in interpreter.constants():
        note(name, value)
    return outputs, peaks


def _weight_peaks(model: onnx.ModelProto, folder: Path) -> dict[str, float]:
    """Largest magnitude of each initializer of floating-point type, read one by one."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return {
        tensor.name: float(np.abs(onnx.numpy_helper.to_array(tensor, str(folder)).astype(np.float32)).max(initial=0))
        for tensor in model.graph.initializer
        if tensor.data_type in kinds
    }
