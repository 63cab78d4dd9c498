"""`starflow calibrate --weights`: a bundle gets variants whose weights are small and whose samples are still its samples.

    samples    drawn from the model with guidance, or inverted from data the user gives
    inputs     of every matrix product while these are made: x xᵀ summed, and some vectors
    matrices   scaled, rounded by GPTQ in every treatment of the ladder
    errors     each matrix in each treatment alone, on given tokens; each block as a whole, on whole samples
    choice     one treatment a matrix, the least bytes under the budget; sampled, corrected, sampled again
    caches     of 8 bits for the flow blocks where the budget bears that, too (cpu only)
    variant    written beside the others, then named in the manifest

Everything is measured on the cpu lowering in float32, which every calibration needs to be in the bundle. Integer products are
measured as they run. Portable variants are measured with their dequantised weights: what an engine's 16 bits add is
not the weights' doing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import Cases
from starflow.calibration.weights.cache_edit import quantize_caches
from starflow.calibration.weights.candidates import BlockCandidates, round_block
from starflow.calibration.weights.graph_edit import EditedGraph, Replacement, edit_graph, simulate
from starflow.calibration.weights.layer_inputs import InputRecorder
from starflow.calibration.weights.precision_choice import Choice, Option, choose, predicted_error, total_cost
from starflow.calibration.weights.results import (
    ALL,
    KEPT,
    PLAIN,
    SOURCE,
    MatrixResult,
    Measured,
    WeightCalibration,
    WeightRequest,
)
from starflow.calibration.weights.sample_error import (
    SampleError,
    candidate,
    error_given,
    remove_abandoned,
    sample,
    sample_error,
)
from starflow.calibration.weights.step_graph_weights import Norm, StepGraphWeights, float_bytes
from starflow.calibration.weights.treatment import SMALLEST, SOURCES, TREATMENTS, Lowering
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Quantization, Variant
from starflow.runtime.diagnostics.memory_use import cache_bytes
from starflow.runtime.plain.errors import BundleError, ExportError, UsageError
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.traces.autoregressive import RecordedTrace, sample_trace
from starflow.runtime.traces.case import Case

ROUNDS = 6  # of choosing and sampling
MOST_ROUNDS = 12  # where none has kept the budget yet
CLOSE = 0.8  # of the budget: an error between this and 1 is good enough to stop
GIVEN_IMAGES = 16  # that single matrices are measured on


def calibrate_weights(
    bundle: Bundle,
    request: WeightRequest,
    cases: Cases,
    *,
    trace: Callable[[Bundle], RecordedTrace] | None = None,
    report: Report = no_report,
    waiting: Callable[[], None] = lambda: None,
) -> list[WeightCalibration]:
    """Add quantised variants to a bundle; those it has of the same name give way.

    Args:
        bundle: The bundle.
        request: What to make.
        cases: Samples to calibrate on and to measure on.
        trace: Makes the samples to calibrate on, with what each flow block was given; None draws them from the model.
        report: Told how far it is.
        waiting: Called before waiting for another process that changes the bundle.

    Raises:
        UsageError: the request cannot be met.
        BundleError: the bundle lacks a variant that is needed.
        ExportError: nothing can be quantised within the budget.
    """
    if not (0 < request.budget < np.inf):
        raise UsageError(f"--budget {request.budget}: give a relative error above 0, such as 0.005")
    lowerings = _lowerings(bundle, request)
    # A plan approximates; what weights do is measured token by token.
    bundle = Bundle(bundle.root, bundle.autoregressive.model_copy(update={"plans": ()}))
    with bundle_lock(bundle.root, "work", waiting):
        remove_abandoned(bundle)
        measured = bundle.variant(SOURCES["cpu"], "cpu")
        steps = _Steps(report, bundle, len(lowerings))
        steps("sampling")
        if trace is None:
            with OnnxRuntimeBackend(bundle, measured, threads=request.threads) as backend:
                recorded = sample_trace(bundle, measured, backend, cases.calibrate)
        else:
            recorded = trace(bundle)
        exact = sample(bundle, measured, cases.check, request.threads)
        return [
            _Calibration(bundle, measured, lowering, request, recorded, cases.check, exact, steps).run()
            for lowering in lowerings
        ]


def _lowerings(bundle: Bundle, request: WeightRequest) -> list[Lowering]:
    names = [variant.name for variant in bundle.manifest.variants]
    if SOURCES["cpu"] not in names:
        raise BundleError(
            f"{bundle.root}: has no variant {SOURCES['cpu']}, which calibration runs; it has {', '.join(names)}: "
            "export it again with --precision fp32 fp16"
        )
    possible = [lowering for lowering, kind in TREATMENTS if kind == request.weights]
    found = [lowering for lowering in possible if SOURCES[lowering] in names]
    for lowering in request.lowerings or ():
        if lowering not in possible:
            raise UsageError(f"--lowering {lowering}: {request.weights} is for engines; name portable")
        if lowering not in found:
            found = []
    if not found:
        raise BundleError(
            f"{bundle.root}: has no variant {SOURCES['portable']}, which the portable {request.weights} one is made from; "
            "export it again with --precision fp32 fp16"
        )
    return [lowering for lowering in found if request.lowerings is None or lowering in request.lowerings]


class _Steps:
    """Counts the steps of all variants."""

    def __init__(self, report: Report, bundle: Bundle, variants: int) -> None:
        self._report, self._done = report, 0
        blocks = sum(not block.identity for block in bundle.autoregressive.blocks)
        self._total = 1 + variants * (4 * blocks + 2 + ROUNDS + 1)

    def __call__(self, doing: str, count: int = 1) -> None:
        self._report(min(self._done, self._total), self._total, doing)
        self._done += count


class _Calibration:
    """Makes one variant."""

    def __init__(
        self,
        bundle: Bundle,
        measured: Variant,
        lowering: Lowering,
        request: WeightRequest,
        trace: RecordedTrace,
        case: Case,
        exact: NDArray,
        steps: _Steps,
    ) -> None:
        self.bundle, self.measured, self.lowering, self.request = bundle, measured, lowering, request
        self.trace, self.case, self.exact, self.steps = trace, case, exact, steps
        self.source = bundle.variant(SOURCES[lowering], lowering)
        self.treatments = TREATMENTS[lowering, request.weights]
        self.name = f"{lowering}-{request.weights}"

    def run(self) -> WeightCalibration:
        blocks = [graph.block for graph in self.source.graphs]
        self.blocks = {block: self._round(block) for block in reversed(blocks)}
        options = {block: self._options(block) for block in self.blocks}
        self.options = {name: each for block in self.blocks for name, each in options[block].items()}
        if not self.options:
            raise ExportError(f"{self.bundle.root}: has no weight matrix of {SMALLEST} values or more to quantise")
        measured = [Measured(SOURCE, self._bytes({}), SampleError(0.0, 0.0, 0.0))]
        self.steps(f"{self.name}: sampling with plain rounding")
        plain = self._sample(self._plain_graphs())
        measured.append(Measured(PLAIN, self._bytes(self._all()), sample_error(plain, self.exact)))
        self.steps(f"{self.name}: sampling with calibrated rounding")
        found = self._sample(self._edit(self._all()))
        measured.append(Measured(ALL, self._bytes(self._all()), sample_error(found, self.exact)))
        choice, tried, samples = self._choose()
        measured += tried
        caches: frozenset[int] = frozenset()
        if self.lowering == "cpu":
            caches, measured[-1], samples = self._choose_caches(choice, measured[-1], samples)
        variant = self._write(choice, caches, measured)
        return WeightCalibration(
            variant=variant,
            request=self.request,
            images=len(self.case.noise),
            guidance=self.case.guidance,
            matrices=tuple(self._result(name, choice[name]) for name in self.options),
            measured=tuple(measured),
            frontier=self._frontier(),
            samples={SOURCE: self.exact, PLAIN: plain, self.name: samples},
        )

    def _round(self, block: int) -> BlockCandidates:
        self.steps(f"{self.name}: flow block {block}, looking at inputs")
        spec = self.bundle.graph(self.measured, block)
        weights = StepGraphWeights(self.bundle.root / spec.file.path)
        recorder = InputRecorder(
            weights, spec, self.bundle.autoregressive.blocks[block], self.trace, threads=self.request.threads
        )
        return round_block(weights, recorder, self.treatments, self.lowering)

    # Errors

    def _options(self, block: int) -> dict[str, list[Option]]:
        """What each treatment of each matrix of a block costs, and what it does to the samples."""
        self.steps(f"{self.name}: flow block {block}, measuring every matrix")
        names = self.blocks[block].calibrated
        given = {
            (name, treatment): self._error_given(block, {name: treatment})
            for name in names
            for treatment in names[name]
        }
        self.steps(f"{self.name}: flow block {block}, sampling")
        growth = self._growth(block, given) if names else 0.0
        treatments = {treatment.name: treatment for treatment in self.treatments}
        options: dict[str, list[Option]] = {}
        for name in names:
            source = float_bytes(self.blocks[block].weights, name)
            options[name] = [Option(KEPT, source if self.lowering == "cpu" else source // 2, 0.0)]
            for kind, replacement in names[name].items():
                cost = treatments[kind].cost(replacement.matrix.bytes)
                options[name].append(Option(kind, cost, growth * given[name, kind]))
        return options

    def _error_given(self, block: int, chosen: Mapping[str, str]) -> float:
        graph = self._measurable(
            block, {name: self.blocks[block].calibrated[name][kind] for name, kind in chosen.items()}
        )
        with candidate(self.bundle, self.measured, {block: graph}) as variant:
            return error_given(self.bundle, variant, block, self.trace, GIVEN_IMAGES, self.request.threads)

    def _growth(self, block: int, given: Mapping[tuple[str, str], float]) -> float:
        """How much larger an error on given tokens becomes once tokens are fed back and go through the blocks below.

        Measured with the block's most exact treatment throughout, near to where the choice will be.
        """
        chosen = {name: list(kinds)[-1] for name, kinds in self.blocks[block].calibrated.items()}
        error = sample_error(self._sample(self._edit(chosen)), self.exact).total
        return error / sum(given[name, kind] ** 2 for name, kind in chosen.items()) ** 0.5

    def _choose(self) -> tuple[Choice, list[Measured], NDArray]:
        """Choose, sample, and choose again with what sampling taught, until the budget is used well.

        Predictions are off by a common factor: errors do not only grow, and a few images may carry most of them. So it is the
        predicted error aimed for that is corrected, and halved in ratio once a good and a bad one are known. The choice
        that is taken is measured last.
        """
        budget, aim = self.request.budget, self.request.budget
        good, bad = 0.0, np.inf
        best: tuple[Choice, Measured, NDArray] | None = None
        tried: list[Measured] = []
        seen: list[dict[str, str]] = []
        while len(seen) < ROUNDS or (best is None and len(seen) < MOST_ROUNDS):
            choice = choose(self.options, aim)
            kinds = {name: option.name for name, option in choice.items() if option.name != KEPT}
            if not kinds or kinds in seen:
                break
            seen.append(kinds)
            self.steps(f"{self.name}: sampling choice {len(seen)}")
            samples = self._sample(self._edit(kinds))
            error = sample_error(samples, self.exact)
            result = Measured(f"choice {len(seen)}", self._bytes(kinds), error)
            if error.total <= budget:
                if best is None or total_cost(choice) < total_cost(best[0]):
                    tried += [best[1]] if best else []
                    best = (choice, result, samples)
                good = max(good, aim)
                if error.total >= CLOSE * budget or kinds == self._all():
                    break
            else:
                tried.append(result)
                bad = min(bad, aim)
            correction = budget / max(error.total, budget / 4) if np.isfinite(error.total) else 0.25
            aim = (good * bad) ** 0.5 if 0 < good < bad < np.inf else aim * correction * 0.95
        if best is None:
            raise ExportError(
                f"{self.bundle.root}: no matrix can be {self.request.weights} with an error of at most {budget:g}; "
                "allow more with --budget"
            )
        return best[0], [*tried, best[1]], best[2]

    def _choose_caches(
        self, choice: Choice, result: Measured, samples: NDArray
    ) -> tuple[frozenset[int], Measured, NDArray]:
        """Caches of 8 bits for each flow block whose samples stay in the budget with them; the largest caches first."""
        kinds = {name: option.name for name, option in choice.items() if option.name != KEPT}
        caches: frozenset[int] = frozenset()
        for block in sorted(self.blocks, key=lambda block: -cache_bytes(self.bundle.graph(self.source, block))):
            self.steps(f"{self.name}: flow block {block}, sampling with caches of 8 bits")
            found = self._sample(self._edit(kinds, caches | {block}))
            error = sample_error(found, self.exact)
            if error.total <= self.request.budget:
                caches |= {block}
                what = f"{result.what.partition(',')[0]}, 8-bit caches"
                scales = sum(peak.nbytes for peak in self.blocks[block].cache_peaks.values())
                rows = self.bundle.autoregressive.blocks[block].rows
                result, samples = Measured(what, result.bytes + rows * scales, error), found
        return caches, result, samples

    def _frontier(self) -> tuple[tuple[float, int], ...]:
        """Bytes for errors, as predicted before anything was corrected."""
        points = []
        most = predicted_error({name: max(some, key=lambda o: o.error) for name, some in self.options.items()})
        for budget in np.geomspace(most / 1000, most, 25):
            choice = choose(self.options, float(budget))
            kinds = {name: option.name for name, option in choice.items() if option.name != KEPT}
            points.append((predicted_error(choice), self._bytes(kinds)))
        return tuple(points)

    # Graphs

    def _all(self) -> dict[str, str]:
        """Every matrix in its smallest treatment."""
        return {name: next(iter(kinds)) for block in self.blocks.values() for name, kinds in block.calibrated.items()}

    def _edit(self, chosen: Mapping[str, str], caches: Collection[int] = ()) -> dict[int, EditedGraph]:
        """Graphs to measure a choice with, of the blocks it changes."""
        graphs = {}
        for block, candidates in self.blocks.items():
            replacements = {n: candidates.calibrated[n][k] for n, k in chosen.items() if n in candidates.calibrated}
            if replacements or block in caches:
                graphs[block] = self._measurable(block, replacements)
            if block in caches:
                self._quantize_caches(block, graphs[block])
        return graphs

    def _quantize_caches(self, block: int, graph: EditedGraph) -> None:
        quantize_caches(graph, self.bundle.autoregressive.blocks[block], self.blocks[block].cache_peaks)

    def _plain_graphs(self) -> dict[int, EditedGraph]:
        return {
            block: self._measurable(block, candidates.plain, scales={})
            for block, candidates in self.blocks.items()
            if candidates.plain
        }

    def _measurable(
        self, block: int, replacements: Mapping[str, Replacement], scales: Mapping[Norm, NDArray] | None = None
    ) -> EditedGraph:
        candidates = self.blocks[block]
        scales = candidates.scales if scales is None else scales
        if self.lowering == "cpu":
            return edit_graph(candidates.weights, "cpu", replacements, scales)
        factors = {name: factor for norm, factor in scales.items() for name in norm.weights}
        return simulate(
            candidates.weights,
            {
                name: (replacement.matrix.dequantized() / factors.get(name, 1.0)).astype(np.float32)
                for name, replacement in replacements.items()
            },
        )

    def _sample(self, graphs: Mapping[int, EditedGraph]) -> NDArray[np.float32]:
        with candidate(self.bundle, self.measured, graphs) as variant:
            return sample(self.bundle, variant, self.case, self.request.threads)

    # Results

    def _bytes(self, chosen: Mapping[str, str]) -> int:
        """Bytes of weights that a pass over all flow blocks reads."""
        total = sum(graph.weight_bytes for graph in self.source.graphs)
        for candidates in self.blocks.values():
            for name, kinds in candidates.calibrated.items():
                if name in chosen:
                    total += kinds[chosen[name]].matrix.bytes - self._source_bytes(candidates, name)
        return total

    def _source_bytes(self, candidates: BlockCandidates, name: str) -> int:
        stored = float_bytes(candidates.weights, name)
        return stored if self.lowering == "cpu" else stored // 2

    def _result(self, name: str, option: Option) -> MatrixResult:
        block, candidates = next((b, c) for b, c in self.blocks.items() if name in c.calibrated)
        linear = candidates.weights.linears[name]
        source = self._source_bytes(candidates, name)
        kept = option.name == KEPT
        return MatrixResult(
            weight=name,
            block=block,
            shape=(linear.outputs, linear.inputs),
            treatment=option.name,
            plain_output_error=candidates.output_errors[name][0],
            output_error=candidates.output_errors[name][1],
            sample_errors={each.name: each.error for each in self.options[name] if each.name != KEPT},
            bytes=source if kept else candidates.calibrated[name][option.name].matrix.bytes,
            source_bytes=source,
        )

    def _write(self, choice: Choice, caches: Collection[int], measured: Sequence[Measured]) -> Variant:
        self.steps(f"{self.name}: writing")

        def edit(source: StepGraphWeights, block: int) -> EditedGraph:
            candidates = self.blocks[block]
            chosen = {n: o.name for n, o in choice.items() if n in candidates.calibrated and o.name != KEPT}
            replacements = {name: candidates.calibrated[name][kind] for name, kind in chosen.items()}
            graph = edit_graph(source, self.lowering, replacements, candidates.scales)
            if block in caches:
                self._quantize_caches(block, graph)
            return graph

        plain = next(each.error.total for each in measured if each.what == PLAIN)
        record = Quantization(
            source=self.source.name,
            budget=self.request.budget,
            error=measured[-1].error.total,
            plain_error=plain if np.isfinite(plain) else None,
            images=len(self.case.noise),
            guidance=self.case.guidance,
            matrices={name: option.name for name, option in choice.items()},
            caches=tuple(sorted(caches)),
        )
        writer = VariantWriter(self.bundle, self.name)
        variants = writer.write(self.source.name, edit, self.request.weights, record)
        writer.publish(variants)
        return variants[0]
