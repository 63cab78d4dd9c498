"""The parser guard over the graphs that TensorRT may be given: nothing in them that it would silently misread."""

from collections.abc import Sequence
from dataclasses import dataclass

from starflow.export.tensorrt.parser_guard import guard_graph
from starflow.export.verification.routes import Failure
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import ExportError


@dataclass(frozen=True)
class Guarded:
    """How many portable graphs were read, and which would be misread."""

    graphs: int
    failures: tuple[Failure, ...]


NOT_GUARDED = Guarded(0, ())


def guard_variants(bundle: Bundle, variants: Sequence[Variant]) -> Guarded:
    """Read every graph of the portable ones among some variants."""
    graphs = [graph for variant in variants if variant.lowering == "portable" for graph in variant.graphs]
    failures = []
    for graph in graphs:
        try:
            guard_graph(bundle.path(graph.file), graph.block)
        except ExportError as error:
            failures.append(Failure("parser guard", str(error)))
    return Guarded(len(graphs), tuple(failures))
