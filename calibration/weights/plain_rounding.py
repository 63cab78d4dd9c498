"""`starflow calibrate --weights T --plain`: every matrix rounded to its nearest codes, and nothing else.

Needs no samples, so it takes seconds for a small model and minutes for one of billions of parameters, whose calibration would
sample for days on a CPU. What the rounding does to samples is not known then: the manifest states no error.
"""

from collections.abc import Sequence

from starflow.calibration.weights.candidates import round_to_nearest
from starflow.calibration.weights.graph_edit import EditedGraph, edit_graph
from starflow.calibration.weights.ladders import Ladders, fixed_ladders
from starflow.calibration.weights.results import KEPT
from starflow.calibration.weights.sources import PLAIN, find_sources
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.calibration.weights.treatment import Product, WeightType
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Lowering, Quantization, Variant
from starflow.runtime.plain.progress import Report, no_report


def round_plainly(
    bundle: Bundle,
    weights: WeightType,
    lowerings: Sequence[Lowering] | None = None,
    report: Report = no_report,
    product: Product | None = None,
) -> list[Variant]:
    """Add plainly rounded variants to a bundle; those it has of the same name give way.

    Args:
        lowerings: The lowerings to make variants of; None takes those whose source the bundle holds.
        product: What shares a scale among activations of 8 bits on the CPU; None takes `block`, the more exact.

    Raises:
        UsageError: this type of weights is not for the lowering.
        BundleError: the bundle lacks the variant to start from.
    """
    sources = find_sources(bundle, weights, lowerings, PLAIN)
    with bundle_lock(bundle.folder, "work", lambda: None):
        return [
            _make(
                bundle, bundle.variant(name, ""), weights, fixed_ladders(lowering, weights, product), lowering, report
            )
            for lowering, name in sources.items()
        ]


def _make(
    bundle: Bundle, source: Variant, weights: WeightType, ladders: Ladders, lowering: Lowering, report: Report
) -> Variant:
    treatment = ladders.treatments[0]
    name = f"{lowering}-{weights}"
    matrices: dict[str, str] = {}
    for graph in source.graphs:
        for each in StepGraphWeights(bundle.path(graph.file)).linears.values():
            matrices[each.weight] = treatment.name if treatment.takes(each.outputs, each.inputs) else KEPT
    total, done = len(source.graphs) * len(bundle.places()), 0

    def edit(step: StepGraphWeights, block: Block) -> EditedGraph:
        nonlocal done
        report(done, total, f"{name}: flow block {block.index}")
        done += 1
        rounded = {
            each.weight: round_to_nearest(step, each, treatment, lowering)
            for each in step.linears.values()
            if matrices[each.weight] != KEPT
        }
        return edit_graph(step, lowering, rounded, {})

    record = Quantization(
        source=source.name, budget=None, error=None, plain_error=None, images=0, guidance=0.0, matrices=matrices
    )
    writer = VariantWriter(bundle, name)
    variants = writer.write(source.name, edit, weights, record)
    writer.publish(variants)
    return variants[0]
