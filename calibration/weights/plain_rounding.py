"""`starflow calibrate --weights T --plain`: every matrix rounded to its nearest codes, and nothing else.

Needs no samples, so it takes seconds for a small model and minutes for one of billions of parameters, whose calibration would
sample for days on a CPU. What the rounding does to samples is not known then: the manifest states no error.
"""

from collections.abc import Sequence

import numpy as np

from starflow.calibration.weights.graph_edit import EditedGraph, Replacement, edit_graph
from starflow.calibration.weights.number_format import largest_scales, nearest_codes
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.calibration.weights.treatment import SMALLEST, TREATMENTS, Lowering, Treatment, WeightType
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Quantization, Variant
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.progress import Report, no_report

# What a variant is made from, the best choice first. Half precision costs 8-bit codes nothing.
SOURCES: dict[Lowering, tuple[str, ...]] = {"cpu": ("cpu-fp32", "cpu-fp16"), "portable": ("portable-fp16",)}


def round_plainly(
    bundle: Bundle, weights: WeightType, lowerings: Sequence[Lowering] | None = None, report: Report = no_report
) -> list[Variant]:
    """Add plainly rounded variants to a bundle; those it has of the same name give way.

    Args:
        bundle: The bundle.
        weights: Type of the weights.
        lowerings: What to make variants of; None takes those whose source the bundle holds.
        report: Told how far it is.

    Raises:
        UsageError: this type of weights is not for the lowering.
        BundleError: the bundle lacks the variant to start from.
    """
    possible = [lowering for lowering, kind in TREATMENTS if kind == weights]
    names = [variant.name for variant in bundle.autoregressive.variants]
    sources: dict[Lowering, str] = {}
    for lowering in lowerings or possible:
        if lowering not in possible:
            raise UsageError(f"--lowering {lowering}: {weights} is for engines; name portable")
        found = next((name for name in SOURCES[lowering] if name in names), None)
        if found:
            sources[lowering] = found
        elif lowerings:
            raise BundleError(
                f"{bundle.root}: has no variant {' or '.join(SOURCES[lowering])}; it has {', '.join(names)}: "
                "export it again with --precision fp16"
            )
    if not sources:
        raise BundleError(f"{bundle.root}: has nothing to round; export it again with --precision fp16")
    with bundle_lock(bundle.root, "work", lambda: None):
        return [
            _make(bundle, bundle.variant(name, ""), weights, lowering, report) for lowering, name in sources.items()
        ]


def _make(bundle: Bundle, source: Variant, weights: WeightType, lowering: Lowering, report: Report) -> Variant:
    treatment = TREATMENTS[lowering, weights][0]
    name = f"{lowering}-{weights}"
    matrices: dict[str, str] = {}
    for graph in source.graphs:
        step = StepGraphWeights(bundle.root / graph.file.path)
        matrices |= {matrix: treatment.name if _rounds(step, matrix, treatment) else "kept" for matrix in step.linears}
    total, done = len(source.graphs) * len(bundle.autoregressive.sizes), 0

    def edit(step: StepGraphWeights, block: int) -> EditedGraph:
        nonlocal done
        report(done, total, f"{name}: flow block {block}")
        done += 1
        return edit_graph(step, lowering, _round(step, treatment, lowering), {})

    record = Quantization.model_validate(
        {
            "source": source.name,
            "budget": None,
            "error": None,
            "plain_error": None,
            "images": 0,
            "guidance": 0.0,
            "matrices": matrices,
        }
    )
    writer = VariantWriter(bundle, name)
    variants = writer.write(source.name, edit, weights, record)
    writer.publish(variants)
    return variants[0]


def _rounds(step: StepGraphWeights, name: str, treatment: Treatment) -> bool:
    """Whether a matrix is large enough and of a shape that the treatment takes."""
    linear = step.linears[name]
    return treatment.block(linear.inputs) is not None and linear.outputs * linear.inputs >= SMALLEST


def _round(step: StepGraphWeights, treatment: Treatment, lowering: Lowering) -> dict[str, Replacement]:
    scale_type = np.dtype(np.float32 if lowering == "cpu" else np.float16)
    found = {}
    for name, linear in step.linears.items():
        block = treatment.block(linear.inputs)
        if block is None or not _rounds(step, name, treatment):
            continue
        matrix = step.array(name).astype(np.float32)
        found[name] = Replacement(
            nearest_codes(matrix, largest_scales(matrix, treatment.format, block, scale_type), treatment.format)
        )
    return found
