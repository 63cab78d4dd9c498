"""A PyTorch function as the program that PyTorch's ONNX exporter translates, traced once.

Given a module, the exporter traces it twice to capture it, and twice more to decompose operators that ONNX lacks. A program that
traces itself when the exporter names those operators comes to the same graph in a third of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
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
        table = {**(decomp_table or {}), **self._decompositions}
        traced = make_fx(self._function, table)(*self._arguments)
        if any(_writes(node.target) for node in traced.graph.nodes):  # ONNX has no operator that does
            traced = make_fx(functionalize(traced), table)(*self._arguments)
        traced.graph.eliminate_dead_code()
        end = traced.graph.output_node()
        end.args = (tuple(end.all_input_nodes),)
        return ExportedProgram(**_parts(traced))


def _writes(target: object) -> bool:
    """Whether an operator changes one of its inputs."""
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _parts(traced: GraphModule) -> dict[str, Any]:
    """What an exported program is made of, where all inputs are arguments."""
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    outputs = [node.name for node in traced.graph.output_node().all_input_nodes]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, TensorArgument(name), None) for name in inputs],
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
        "range_constraints": {},
        "module_call_graph": [ModuleCallEntry("", call)],
    }
