"""A PyTorch function as the program that PyTorch's ONNX exporter translates, traced once.

Given a module, the exporter traces it twice to capture it, and twice more to decompose operators that ONNX lacks. A program that
traces itself when the exporter names those operators comes to the same graph in a third of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.func import functionalize
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Decompositions = Mapping[Any, Callable[..., Any]]

LAYER_NORM = torch.ops.aten.native_layer_norm.default
STATISTICS = (1, 2)  # mean and 1 / deviation, among its outputs


class TracedProgram(ExportedProgram):
    """A program without a graph until the exporter decomposes it."""

    def __init__(
        self, function: Callable[..., Tensor], arguments: Sequence[Tensor], decompositions: Decompositions
    ) -> None:
        """Prepare a function of tensors; only their shapes and types count.

        Args:
            function: Returns one tensor.
            arguments: Tensors of a `FakeTensorMode`, under which the export has to run.
            decompositions: What operators turn into, before what the exporter wants.
        """
        graph = Graph()
        graph.output(())
        super().__init__(**_parts(GraphModule({}, graph)))
        self._function, self._arguments, self._decompositions = function, arguments, decompositions

    def run_decompositions(
        self, decomp_table: dict[Any, Callable[..., Any]] | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        table: dict[Any, Callable[..., Any]] = {**(decomp_table or {}), **self._decompositions}
        # What `torch.tensor(0.0)` passes through. Decomposed, it hands the real tensor to operators that take fake ones alone.
        table.pop(torch.ops.aten.lift_fresh.default, None)
        traced = make_fx(self._function, table)(*self._arguments)
        if _reads_statistics(traced):
            table.update(get_decompositions([LAYER_NORM]))
            traced = make_fx(traced, table)(*self._arguments)
        if any(_writes(node.target) for node in traced.graph.nodes):  # ONNX has no operator that does
            traced = make_fx(functionalize(traced), table)(*self._arguments)
        traced.graph.eliminate_dead_code()
        end = traced.graph.output_node()
        end.args = (tuple(end.all_input_nodes),)
        return ExportedProgram(**_parts(traced))


def _reads_statistics(traced: GraphModule) -> bool:
    """Whether a derivative reads of a layer norm what TensorRT's operator does not give."""
    norms = traced.graph.find_nodes(op="call_function", target=LAYER_NORM)
    return any(use.args[1] in STATISTICS and use.users for norm in norms for use in norm.users)


def _writes(target: object) -> bool:
    """Whether an operator changes one of its inputs."""
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _lift_constants(traced: GraphModule) -> dict[str, Tensor]:
    """Turn the tensors that a function makes out of numbers from attributes into inputs, and return them by their names."""
    constants: dict[str, Tensor] = {}
    graph = traced.graph
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        with graph.inserting_before(first):
            lifted = graph.placeholder(node.name)
        constants[lifted.name] = getattr(traced, node.target)
        lifted.meta = node.meta
        node.replace_all_uses_with(lifted)
        graph.erase_node(node)
    return constants


def _parts(traced: GraphModule) -> dict[str, Any]:
    """What an exported program is made of, where all inputs are arguments or constants."""
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    constants = _lift_constants(traced)
    outputs = [node.name for node in traced.graph.output_node().all_input_nodes]
    signature = ExportGraphSignature(
        [
            *(InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name), name) for name in constants),
            *(InputSpec(InputKind.USER_INPUT, TensorArgument(name), None) for name in inputs),
        ],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name), None) for name in outputs],
    )
    call = ModuleCallSignature(
        [], [], pytree.tree_structure((tuple(inputs), {})), pytree.tree_structure(tuple(outputs))
    )
    return {
        "root": traced,
        "graph": traced.graph,
        "graph_signature": signature,
        "state_dict": {},
        "constants": constants,
        "range_constraints": {},
        "module_call_graph": [ModuleCallEntry("", call)],
    }
