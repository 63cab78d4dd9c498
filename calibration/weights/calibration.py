"""`starflow calibrate --weights`: a bundle gets variants whose weights are small and whose samples stay close.

    products   of 8 bits timed on this machine, for each shape of matrix (cpu only)
    samples    drawn from the model with guidance, or inverted from data the user gives
    inputs     of every matrix product while sampling: x xᵀ summed, and some vectors
    matrices   scaled, rounded by GPTQ in every treatment of the ladder
    errors     each matrix in each treatment alone, on given tokens; each block as a whole, on whole samples
    choice     one treatment a matrix, the least bytes within the budget; sampled, corrected, sampled again
    caches     of 8 bits for the flow blocks where the budget bears that, too (cpu only)
    students   of the bundle, likewise (cpu in 8 bits only; see `student_weights`)
    variant    written beside the others, timed against its source (cpu only), then named in the manifest

Everything is measured on the cpu lowering in float32, which every calibration needs to be in the bundle. Integer products are
measured as they run. Portable variants are measured with their dequantised weights: what an engine's 16 bits add is
not the weights' doing.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.budget import check_budget
from starflow.calibration.cases import Cases, check_finite
from starflow.calibration.weights.budget_choice import ROUNDS, choose_within
from starflow.calibration.weights.candidates import BlockCandidates
from starflow.calibration.weights.ladders import CHUNK, Ladders, fixed_ladders, measure_ladders
from starflow.calibration.weights.layer_inputs import StepInputs
from starflow.calibration.weights.precision_choice import Choice, Option, choose, predicted_error
from starflow.calibration.weights.product_times import Shape
from starflow.calibration.weights.quantised_model import QuantisedModel, treatments_of
from starflow.calibration.weights.results import (
    ALL,
    KEPT,
    PLAIN,
    SOURCE,
    MatrixResult,
    Measured,
    StudentResult,
    WeightCalibration,
    WeightRequest,
)
from starflow.calibration.weights.sample_error import SampleError, remove_abandoned, sample, sample_error
from starflow.calibration.weights.sources import EXACT, find_sources, lacking
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.calibration.weights.student_weights import STEPS as STUDENT_STEPS
from starflow.calibration.weights.student_weights import quantise_students
from starflow.calibration.weights.treatment import SMALLEST
from starflow.calibration.weights.variant_times import time_variant
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.backends.onnxruntime.thread_choice import thread_counts
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import cache_bytes
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Quantization, Variant
from starflow.runtime.plain.errors import ExportError
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.traces.autoregressive import RecordedTrace, sample_trace

MEASURED = "cpu-fp32"  # the variant that everything is measured on


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
        cases: Weights are calibrated on the first and measured on the second.
        trace: Returns the samples to calibrate on, with what each flow block was given; None draws them from the model.
        waiting: Called before waiting for another process that changes the bundle.

    Raises:
        UsageError: the request cannot be met.
        BundleError: the bundle lacks a variant that is needed.
        NotFiniteError: exact samples are not finite.
        ExportError: nothing can be quantised within the budget.
    """
    check_budget(request.budget)
    if all(variant.name != MEASURED for variant in bundle.manifest.variants):
        raise lacking(bundle, [MEASURED])
    sources = find_sources(bundle, request.weights, request.lowerings, EXACT)
    # A plan approximates; what weights do is measured token by token.
    bundle = bundle.with_manifest(bundle.autoregressive.model_copy(update={"plans": ()}))
    with bundle_lock(bundle.folder, "work", waiting):
        remove_abandoned(bundle)
        measured = bundle.variant(MEASURED, "cpu")
        students = len(bundle.autoregressive.students) if request.weights == "int8" and "cpu" in sources else 0
        steps = _Steps(report, bundle, len(sources), students)
        ladders = {lowering: fixed_ladders(lowering, request.weights, request.product) for lowering in sources}
        if "cpu" in sources and request.weights == "int8" and request.product is None:
            steps("timing products")
            ladders["cpu"] = measured_ladders(bundle, measured, request.threads)
        steps("sampling")
        if trace is None:
            with OnnxRuntimeBackend(bundle, measured, threads=request.threads) as backend:
                recorded = sample_trace(bundle, measured, backend, cases.calibrate)
            for tokens in recorded.tokens.values():
                check_finite(tokens, cases.calibrate)
        else:
            recorded = trace(bundle)
        exact = sample(bundle, measured, cases.check, request.threads)
        check_finite(exact, cases.check)
        return [
            _Calibration(
                QuantisedModel(
                    bundle, measured, bundle.variant(name, lowering), lowering, {}, cases.check, request.threads
                ),
                request,
                ladders[lowering],
                recorded,
                exact,
                steps,
            ).run()
            for lowering, name in sources.items()
        ]


def measured_ladders(bundle: Bundle, variant: Variant, threads: int) -> Ladders:
    """The treatments of 8 bits for the matrices of a variant, as this machine runs them at the bundle's batch sizes."""
    shapes = Counter[Shape]()
    for graph in variant.graphs:
        shapes |= Counter((e.outputs, e.inputs) for e in StepGraphWeights(bundle.path(graph.file)).linears.values())
    blocks = (place.autoregressive.blocks[graph.block] for place in bundle.places() for graph in variant.graphs)
    rows = {block.rows * tokens for block in blocks for tokens in (1, CHUNK)}  # of single steps and of chunks
    largest = max(graph.weight_bytes for graph in variant.graphs)
    return measure_ladders(shapes, sorted(rows), thread_counts(threads, largest)[0])


class _Steps:
    """Reports the steps of all variants as one."""

    def __init__(self, report: Report, bundle: Bundle, variants: int, students: int) -> None:
        self._report, self._done = report, 0
        blocks = sum(not block.identity for block in bundle.autoregressive.blocks)
        self._total = 2 + variants * (4 * blocks + 2 + ROUNDS + 1) + blocks * len(bundle.manifest.batch_sizes)
        self._total += STUDENT_STEPS * students

    def __call__(self, doing: str) -> None:
        self._report(min(self._done, self._total), self._total, doing)
        self._done += 1


@dataclass(frozen=True)
class _Sampled:
    """A choice as it was sampled."""

    measured: Measured
    samples: NDArray[np.float32]

    @property
    def error(self) -> float:
        return self.measured.error.total


@dataclass(frozen=True)
class _Calibration:
    """Quantises one variant."""

    model: QuantisedModel
    request: WeightRequest
    ladders: Ladders
    trace: RecordedTrace
    exact: NDArray
    steps: _Steps

    @property
    def name(self) -> str:
        return f"{self.model.lowering}-{self.request.weights}"

    def run(self) -> WeightCalibration:
        model, options = self.model, dict[str, list[Option]]()
        for graph in reversed(self.model.source.graphs):
            model.blocks[graph.block] = self._round(graph.block)
        for block in model.blocks:
            options |= self._options(block)
        if not options:
            raise ExportError(
                f"{self.model.bundle.root}: has no weight matrix of {SMALLEST} values or more to quantise"
            )
        self.steps(f"{self.name}: sampling with plain rounding")
        plain = self._measure(PLAIN, model.smallest, model.sample_plainly())
        self.steps(f"{self.name}: sampling with calibrated rounding")
        calibrated = self._measure(ALL, model.smallest, model.sample(model.smallest))
        sampled: list[tuple[Choice, _Sampled]] = []

        def measure(choice: Choice) -> float:
            what, chosen = f"choice {len(sampled) + 1}", treatments_of(choice)
            self.steps(f"{self.name}: sampling {what}")
            sampled.append((choice, self._measure(what, chosen, model.sample(chosen))))
            return sampled[-1][1].error

        tried = choose_within(options, self.request.budget, measure)
        if not tried:
            raise ExportError(
                f"{self.model.bundle.root}: no matrix can be {self.request.weights} with an error of at most "
                f"{self.request.budget:g}; allow more with --budget"
            )
        choice = tried[-1].choice
        taken = next(found for made, found in sampled if made == choice)
        caches: frozenset[int] = frozenset()
        if model.lowering == "cpu":
            caches, taken = self._choose_caches(treatments_of(choice), taken)
        found = [plain, calibrated, *(found for made, found in sampled if made != choice), taken]
        exact = Measured(SOURCE, model.bytes({}), SampleError(0.0, 0.0, 0.0))
        variant, students = self._write(choice, caches, plain.error, taken.error)
        return WeightCalibration(
            variant=variant,
            request=self.request,
            images=len(self.model.case.noise),
            guidance=self.model.case.guidance,
            matrices=tuple(
                self._result(block, name, choice[name], options[name])
                for block, candidates in model.blocks.items()
                for name in candidates.calibrated
            ),
            measured=(exact, *(each.measured for each in found)),
            frontier=self._frontier(options),
            samples={SOURCE: self.exact, PLAIN: plain.samples, self.name: taken.samples},
            students=students,
        )

    def _round(self, block: int) -> BlockCandidates:
        self.steps(f"{self.name}: flow block {block}, looking at inputs")
        spec = self.model.bundle.graph(self.model.measured, block)
        weights = StepGraphWeights(self.model.bundle.path(spec.file))
        described = self.model.bundle.autoregressive.blocks[block]
        recorder = StepInputs(weights, spec, described, self.trace, threads=self.request.threads)
        return BlockCandidates(weights, recorder, self.ladders, self.model.lowering)

    def _options(self, block: int) -> dict[str, list[Option]]:
        """What each treatment of each matrix of a flow block costs, and what it does to the samples."""
        self.steps(f"{self.name}: flow block {block}, measuring every matrix")
        names = self.model.blocks[block].calibrated
        given = {
            (name, kind): self.model.error_given(block, {name: kind}, self.trace)
            for name in names
            for kind in names[name]
        }
        self.steps(f"{self.name}: flow block {block}, sampling")
        growth = self._growth(block, given) if names else 0.0
        return {
            name: [
                Option(KEPT, self.model.source_bytes(block, name), 0.0),
                *(Option(kind, self._cost(block, name, kind), growth * given[name, kind]) for kind in names[name]),
            ]
            for name in names
        }

    def _cost(self, block: int, name: str, kind: str) -> float:
        """What a step pays for a matrix in a treatment."""
        candidates = self.model.blocks[block]
        linear, stored = candidates.weights.linears[name], candidates.calibrated[name][kind].matrix.bytes
        shape = (linear.outputs, linear.inputs)
        treatment = next(each for each in self.ladders.of(*shape) if each.name == kind)
        return self.ladders.cost(treatment, shape, stored, self.model.source_bytes(block, name))

    def _growth(self, block: int, given: Mapping[tuple[str, str], float]) -> float:
        """The factor by which an error on given tokens grows once tokens are fed back and pass through the following blocks.

        Measured with the block's most exact treatment throughout, near to where the choice will be.
        """
        chosen = {name: list(kinds)[-1] for name, kinds in self.model.blocks[block].calibrated.items()}
        error = sample_error(self.model.sample(chosen), self.exact).total
        return error / sum(given[name, kind] ** 2 for name, kind in chosen.items()) ** 0.5

    def _measure(self, what: str, chosen: Mapping[str, str], samples: NDArray, more: int = 0) -> _Sampled:
        return _Sampled(Measured(what, self.model.bytes(chosen) + more, sample_error(samples, self.exact)), samples)

    def _choose_caches(self, chosen: Mapping[str, str], taken: _Sampled) -> tuple[frozenset[int], _Sampled]:
        """Caches of 8 bits for each flow block whose samples stay within the budget with them; the largest caches first."""
        model, caches, scales = self.model, frozenset[int](), 0
        what = f"{taken.measured.what}, 8-bit caches"
        for block in sorted(
            model.blocks, key=lambda block: -cache_bytes(self.model.bundle.graph(self.model.source, block))
        ):
            self.steps(f"{self.name}: flow block {block}, sampling with caches of 8 bits")
            peaks = sum(peak.nbytes for peak in model.blocks[block].cache_peaks.values())
            more = scales + self.model.bundle.autoregressive.blocks[block].rows * peaks
            found = self._measure(what, chosen, model.sample(chosen, caches | {block}), more)
            if found.error <= self.request.budget:
                caches, taken, scales = caches | {block}, found, more
        return caches, taken

    def _frontier(self, options: Mapping[str, Sequence[Option]]) -> tuple[tuple[float, int], ...]:
        """Bytes for errors, as predicted before anything was corrected."""
        most = predicted_error({name: max(some, key=lambda o: o.error) for name, some in options.items()})
        choices = (choose(options, float(budget)) for budget in np.geomspace(most / 1000, most, 25))
        return tuple((predicted_error(choice), self.model.bytes(treatments_of(choice))) for choice in choices)

    def _result(self, block: int, name: str, option: Option, options: Sequence[Option]) -> MatrixResult:
        candidates, source = self.model.blocks[block], self.model.source_bytes(block, name)
        linear = candidates.weights.linears[name]
        kept = option.name == KEPT
        return MatrixResult(
            weight=name,
            block=block,
            shape=(linear.outputs, linear.inputs),
            treatment=option.name,
            plain_output_error=candidates.output_errors[name][0],
            output_error=candidates.output_errors[name][1],
            sample_errors={each.name: each.error for each in options if each.name != KEPT},
            bytes=source if kept else candidates.calibrated[name][option.name].matrix.bytes,
            source_bytes=source,
        )

    def _write(
        self, choice: Choice, caches: Collection[int], plain_error: float, error: float
    ) -> tuple[Variant, tuple[StudentResult, ...]]:
        self.steps(f"{self.name}: writing")
        record = Quantization(
            source=self.model.source.name,
            budget=self.request.budget,
            error=error,
            plain_error=plain_error if np.isfinite(plain_error) else None,
            images=len(self.model.case.noise),
            guidance=self.model.case.guidance,
            matrices={name: option.name for name, option in choice.items()},
            caches=tuple(sorted(caches)),
        )
        chosen = treatments_of(choice)
        writer = VariantWriter(self.model.bundle, self.name)
        variants = writer.write(
            self.model.source.name,
            lambda graph, block: self.model.edit(graph, block, chosen, caches),
            self.request.weights,
            record,
        )
        students: tuple[StudentResult, ...] = ()
        if self.model.lowering == "cpu":
            variants = self._timed(variants)
            if self.request.weights == "int8":
                variants, students = self._with_students(variants, writer)
        writer.publish(variants)
        return variants[0], students

    def _with_students(
        self, variants: Sequence[Variant], writer: VariantWriter
    ) -> tuple[list[Variant], tuple[StudentResult, ...]]:
        """The variants with the students in 8 bits that they run."""
        bundle = self.model.bundle
        made = quantise_students(
            bundle, self.request, self.trace, writer, lambda doing: self.steps(f"{self.name}: {doing}")
        )
        whole = [
            variant.model_copy(update={"students": made.at[place.place]})
            for place, variant in zip(bundle.places(), variants, strict=True)
        ]
        return whole, made.results

    def _timed(self, variants: Sequence[Variant]) -> list[Variant]:
        """The variants with their times on this machine against their source."""
        timing = time_variant(
            self.model.bundle.places(),
            self.model.source.name,
            variants,
            self.request.threads,
            lambda: self.steps(f"{self.name}: timing against {self.model.source.name}"),
        )
        records = [each.quantization for each in variants]
        return [
            each.model_copy(update={"quantization": record and record.model_copy(update={"timing": timing})})
            for each, record in zip(variants, records, strict=True)
        ]
