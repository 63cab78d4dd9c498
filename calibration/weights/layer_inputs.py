"""What goes into the matrix products of a network while a flow samples: second moments, and some of the vectors themselves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from starflow.calibration.weights.step_graph_weights import Linear, StepGraphWeights
from starflow.runtime.backends.block_runner import BlockInputs
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.graph_spec import GraphSpec, fixed_shape
from starflow.runtime.traces.autoregressive import RecordedTrace

VECTORS = 512  # kept of every product's inputs, to estimate errors on
Feed = Mapping[str, Any]  # inputs of one run, by name
FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class LayerInputs:
    """Inputs x of a matrix product."""

    hessian: NDArray  # [in, in] float64, the mean of x xᵀ
    vectors: NDArray  # [N, in] float32, some of them


class ProductInputs:
    """Runs a network again and again, and looks at what its products are given.

    Args:
        weights: The network's graph, of the cpu lowering in float32.
        feeds: Makes the inputs of all runs, by name, anew for every look.
        batches: How many runs these are.
        threads: Threads within an operator; 0 takes one per physical core.
    """

    def __init__(
        self, weights: StepGraphWeights, feeds: Callable[[], Iterable[Feed]], batches: int, threads: int = 0
    ) -> None:
        self._feeds, self._batches = feeds, batches
        model = onnx.ModelProto()
        model.CopyFrom(weights.model)
        for value in dict.fromkeys(linear.value for linear in weights.linears.values()):
            model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what it reports as an error it also raises
        options.add_session_config_entry(FOLDER_OPTION, str(weights.path.parent))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def record(self, linears: Sequence[Linear]) -> dict[str, LayerInputs]:
        """Look at some products; the result is by name of their weights."""
        values = list(dict.fromkeys(linear.value for linear in linears))
        moments: dict[str, NDArray] = {}
        kept: dict[str, list[NDArray]] = {value: [] for value in values}
        counts = dict.fromkeys(values, 0)  # what comes before the rows are doubled for guidance has fewer
        for found in self.runs(values):
            for value, x in zip(values, found, strict=True):
                counts[value] += len(x)
                wide = x.astype(np.float64)
                moments[value] = moments.get(value, 0.0) + wide.T @ wide
                kept[value].append(x[:: max(1, len(x) * self._batches // VECTORS)])
        seen = {value: LayerInputs(moments[value] / counts[value], np.concatenate(kept[value])) for value in values}
        return {linear.weight: seen[linear.value] for linear in linears}

    def runs(self, values: Sequence[str]) -> Iterator[list[NDArray]]:
        """These values of the graph, run by run."""
        for feed in self._feeds():
            yield self._session.run(list(values), feed)

    def cache_peaks(self) -> dict[str, NDArray]:
        """Largest magnitude in each channel of the caches; none of a network that has no caches."""
        return {}


class StepInputs(ProductInputs):
    """Runs a flow block on tokens it has sampled, all at once, and looks at what its products are given.

    Args:
        weights: See `ProductInputs`, as for `threads`.
        trace: Samples, with what each block was given.
    """

    def __init__(
        self, weights: StepGraphWeights, spec: GraphSpec, block: Block, trace: RecordedTrace, threads: int = 0
    ) -> None:
        self._spec, self._block, self._trace = spec, block, trace
        super().__init__(weights, self._given, len(trace.inputs[block.index]), threads)

    def cache_peaks(self) -> dict[str, NDArray]:
        """Largest magnitude in each channel, over rows and positions: by cache input, [kv_heads, head_size] float32."""
        caches = {spec.name: spec.updated_by for spec in self._spec.inputs if spec.role == "cache"}
        peaks: dict[str, NDArray] = {}
        for found in self.runs([str(output) for output in caches.values()]):
            for name, cache in zip(caches, found, strict=True):
                _, heads, _, size = cache.shape  # rows count as heads
                by_row = np.abs(cache).max(axis=(0, 2)).reshape(self._block.rows, heads // self._block.rows, size)
                peaks[name] = np.maximum(peaks.get(name, 0.0), by_row.max(axis=0))
        return peaks

    def _given(self) -> Iterator[Feed]:
        batches = self._trace.inputs[self._block.index]
        tokens = np.split(self._trace.tokens[self._block.index], len(batches))
        for inputs, made in zip(batches, tokens, strict=True):
            yield self._feed(inputs, made)

    def _feed(self, inputs: BlockInputs, tokens: NDArray) -> Feed:
        """One run over every position, each given the token that truly came before it."""
        block = self._block
        given = inputs.scalars | ({"label": inputs.label} if inputs.label is not None else {})
        feed = {spec.name: np.zeros(fixed_shape(spec, block.capacity), spec.dtype) for spec in self._spec.inputs}
        first_input = block.prefix + 1 - block.first_token
        feed["previous"][:, first_input:] = tokens[:, : block.capacity - first_input]
        feed["noise"][:, block.prefix :] = inputs.noise[:, block.first_token :]
        if inputs.condition is not None and "condition" in feed:
            feed["condition"][:, : block.prefix] = inputs.condition
        return feed | {spec.name: given[spec.role] for spec in self._spec.inputs if spec.role in given}
