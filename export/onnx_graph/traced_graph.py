"""A function of a PyTorch model as an ONNX graph: traced, exported by PyTorch, its weights by reference.

Step graphs are written by hand (`step_graph`). What runs once per sample and has no cache to keep is traced instead.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from starflow.export.onnx_graph.builder import IR_VERSION, OPSET
from starflow.export.onnx_graph.network_weights import NetworkWeights, Tensors
from starflow.export.onnx_graph.shared_weights import SharedWeights
from starflow.export.onnx_graph.traced_program import Decompositions, TracedProgram
from starflow.export.onnx_graph.weight_file import external_tensor
from starflow.runtime.plain.errors import ExportError, first_line
from starflow.training.tensor_file import CheckpointTensors


def traced_weights(tensors: CheckpointTensors, dtype: np.dtype) -> Tensors:
    """A checkpoint's tensors in the types that step graphs store them in: matrices in `dtype`, all else in float32."""
    typed = NetworkWeights(tensors, dtype)

    def load(name: str) -> Callable[[], NDArray]:
        matrix = name.endswith(".weight") and len(tensors.shape(name)) == 2
        return partial(typed.matrix if matrix else typed.__getitem__, name)

    return {name: load(name) for name in tensors}


@dataclass(frozen=True)
class TracedGraph:
    """A function as PyTorch exported it: its weights are inputs beside `inputs`."""

    name: str
    inputs: tuple[str, ...]
    exported: onnx.ModelProto

    def over(self, weights: SharedWeights, name: str | None = None, prefix: str = "") -> onnx.ModelProto:
        """The graph over some weights; those in use are stored under their names, unless they are there already.

        Args:
            weights: Of the model traced, or of another one of the same architecture.
            name: Name of the graph, if it is not to have that of the trace.
            prefix: What precedes the model's own names of its tensors in `weights`.
        """
        return _with_weights(name or self.name, deepcopy(self.exported), self.inputs, weights, prefix)


def trace(
    name: str, model: nn.Module, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], output: str
) -> TracedGraph:
    """Trace `function(model, *inputs)`, derivatives included, for the shapes given.

    Args:
        name: Name of the graph.
        model: May be on the meta device: only shapes count.
        function: Takes the model and the inputs, in their order; returns the one output.
        inputs: Their names, and a tensor of each one's shape and type.
        output: Name of the output.

    Raises:
        ExportError: PyTorch cannot trace or translate it.
    """
    owner = _Owner(model, function)
    state_dict = owner.state_dict() | dict(owner.named_buffers())  # those that are not saved as well
    shapes = {key.removeprefix("model."): value for key, value in state_dict.items()}
    names = list(shapes)

    def call(*values: Tensor) -> Tensor:
        swapped = {f"model.{key}": value for key, value in zip(names, values, strict=False)}
        result: Tensor = torch.func.functional_call(owner, swapped, values[len(names) :])
        return result

    # The weights are arguments: no optimiser folds a transpose or a sum into a copy of them.
    arguments = [*shapes.values(), *inputs.values()]
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), _quiet():
        values = [torch.empty(value.shape, dtype=value.dtype) for value in arguments]
        try:
            program = torch.onnx.export(
                TracedProgram(call, values, DECOMPOSITIONS),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[*(f"{WEIGHT}{key}" for key in names), *inputs],
                output_names=[output],
                optimize=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(_untraceable(name, error)) from error
    assert program is not None
    from starflow.export.onnx_graph.simplification import simplify  # loads ONNX Script, which step graphs do without

    simplify(program.model)
    return TracedGraph(name, tuple(inputs), program.model_proto)


# With which the networks beside the flow were exported and compared with PyTorch.
TRIED = "torch 2.11.0 with transformers 5.17.0, and torch 2.13.0 with transformers 5.23.0"


def _untraceable(name: str, error: torch.onnx.OnnxExporterError) -> str:
    """Which network PyTorch could not export, why, and which releases can: what it says itself is advice to its developers."""
    libraries = ("torch", "transformers", "diffusers", "onnxscript")
    found = " ".join(f"{library} {version(library)}" for library in libraries if find_spec(library))
    return (
        f"{name}: PyTorch cannot turn this network into ONNX: {first_line(error.__cause__ or error)} (found {found}); "
        f"known to work: {TRIED}"
    )


WEIGHT = "weight/"  # before the names of weights while the exporter makes up names of its own


class _Owner(nn.Module):
    """Makes a function of a model a module, whose tensors `functional_call` can swap."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self._function = model, function

    def forward(self, *values: Tensor) -> Tensor:
        return self._function(self.model, *values)


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.softmax(x, dim, dtype)


# Attention's softmax guards against rows that are masked throughout, for which ONNX has no plain form. A causal mask has none.
DECOMPOSITIONS: Decompositions = {torch.ops.aten._safe_softmax.default: _softmax}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own packages to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _with_weights(
    name: str, exported: onnx.ModelProto, inputs: Collection[str], weights: SharedWeights, prefix: str
) -> onnx.ModelProto:
    """Turn the inputs that are weights into references to the weight file, and put what is made in between into a scope."""
    graph = exported.graph
    outer = {value.name for value in (*graph.input, *graph.output)}
    used = {value for node in graph.node for value in node.input}
    called = {value.name: prefix + value.name.removeprefix(WEIGHT) for value in graph.input if value.name not in inputs}
    stored = [weights.file.add(key, weights.tensors[key]) for value, key in called.items() if value in used]
    small = {tensor.name for tensor in stored if tensor.dtype in (np.float16, ml_dtypes.bfloat16)}
    widened = {value: f"{name}/{key}" for value, key in called.items() if key in small}
    casts = [
        helper.make_node("Cast", [called[value]], [wide], to=onnx.TensorProto.FLOAT) for value, wide in widened.items()
    ]

    def rename(value: str) -> str:
        if not value or value in outer:
            return widened.get(value) or called.get(value, value)
        return f"{name}/{value}"

    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces of the tracer
    for constant in graph.initializer:
        constant.name = rename(constant.name)
    finished = helper.make_model(
        helper.make_graph(
            [*casts, *graph.node],
            name,
            [value for value in graph.input if value.name in inputs],
            list(graph.output),
            initializer=[*graph.initializer, *(external_tensor(tensor, weights.location) for tensor in stored)],
        ),
        opset_imports=list(exported.opset_import),
        producer_name="starflow",
    )
    finished.ir_version = IR_VERSION
    return finished
