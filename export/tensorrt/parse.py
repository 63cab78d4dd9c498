"""From an ONNX graph to the network TensorRT will compile, with errors that name the node."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.messages import MessageLog, readable
from starflow.runtime.plain.errors import BackendError, ExportError


@dataclass(frozen=True)
class ParsedGraph:
    """A parsed graph and everything that has to live as long as it."""

    flavour: Flavour
    path: Path
    block: int | None  # index of its flow block, for messages; None for a graph that is not a step graph
    builder: Any  # `trt.Builder` the network belongs to
    network: Any  # `trt.INetworkDefinition`, strongly typed
    parser: Any  # `trt.OnnxParser`, which owns the weights the network points into
    log: MessageLog  # messages since the builder was made; TensorRT's logger is `log.logger`

    @property
    def place(self) -> str:
        """File and flow block, for messages."""
        return graph_place(self.path, self.block)


def graph_place(path: Path, block: int | None) -> str:
    """A graph's file and, where it is known, flow block, for messages."""
    return f"{path}" if block is None else f"{path}: flow block {block}"


def parse_graph(
    flavour: Flavour,
    path: Path,
    block: int | None = None,
    *,
    model: onnx.ModelProto | None = None,
    least: str = "WARNING",
) -> ParsedGraph:
    """Read an ONNX graph with TensorRT's own parser.

    Networks are strongly typed: the graph's types are what is computed in.

    Args:
        path: The graph; its weights lie relative to it.
        block: Index of its flow block, for messages.
        model: The graph in place of the one at `path`, over the same weights.
        least: Severity from which on messages are kept.

    Raises:
        BackendError: this flavour cannot be used on this machine.
        ExportError: the parser refuses the graph; the message names the node, its operator and the flow block.
    """
    trt = flavour.trt
    log = MessageLog(flavour, least)
    try:
        builder = trt.Builder(log.logger)
    except TypeError:  # what pybind11 makes of a null pointer
        said = f" ({readable(log.entries[0][1])})" if log.entries else ""
        raise BackendError(
            f"{flavour.name} cannot build on this machine{said}; it needs an NVIDIA GPU and driver, "
            "but --target tensorrt-rtx builds without one"
        ) from None
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log.logger)
    parsed = parser.parse_from_file(str(path)) if model is None else parser.parse(model.SerializeToString(), str(path))
    if not parsed:
        raise ExportError(_refusal(flavour, path, block, parser))
    return ParsedGraph(flavour, path, block, builder, network, parser, log)


def _creation_flags(trt: Any) -> int:
    """Strong typing, where it is a choice: a flavour without the flag knows nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusal(flavour: Flavour, path: Path, block: int | None, parser: Any) -> str:
    where = graph_place(path, block)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    # An error without a node is about the file; it only repeats itself where there is one with a node.
    named = [error for error in errors if error.node_operator()]
    if not named:
        said = readable(errors[0].desc()) if errors else "no reason given"
        return f"{where}: {flavour.name} cannot read the file ({said}); export the bundle again"
    first = named[0]
    node = f"node {first.node_name() or first.node()} ({first.node_operator()})"
    code = str(first.code()).rpartition(".")[2].lower().replace("_", " ")
    said = readable(first.desc())
    reason = code if said in ("", "false") else said
    more = f", and {len(named) - 1} more" if len(named) > 1 else ""
    return (
        f"{where}: {flavour.name} refuses {node}: {reason}{more}; only portable graphs can be built "
        f"(polygraphy inspect model {path} --show layers lists the nodes)"
    )
