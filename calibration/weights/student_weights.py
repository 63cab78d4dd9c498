"""Students in 8 bits: their matrices are chosen like those of step graphs, for passes over all tokens of a batch.

    inputs     of every product, in the noise that the flow block was given when it was sampled exactly
    products   of 8 bits timed on this machine, with a student's rows
    matrices   rounded by GPTQ, those whose product is faster
    choice     the fastest within the budget on the error of a student's tokens
    time       of a pass against that in float32, at every batch size: where it does not pay, the student stays in float32

A budget holds for the tokens of each student; those of a shallow block's are the finished sample.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from starflow.calibration.weights.budget_choice import choose_within
from starflow.calibration.weights.candidates import BlockCandidates
from starflow.calibration.weights.graph_edit import EditedGraph, edit_graph
from starflow.calibration.weights.ladders import Ladders, fixed_ladders, measure_ladders
from starflow.calibration.weights.layer_inputs import Feed, ProductInputs
from starflow.calibration.weights.precision_choice import Choice, Option
from starflow.calibration.weights.product_times import Shape
from starflow.calibration.weights.quantised_model import Treatments, treatments_of
from starflow.calibration.weights.results import KEPT, StudentResult, WeightRequest
from starflow.calibration.weights.sample_error import candidate_file, sample_error
from starflow.calibration.weights.step_graph_weights import StepGraphWeights, float_bytes
from starflow.calibration.weights.variant_writer import VariantWriter
from starflow.runtime.autoregressive.students import student_of
from starflow.runtime.backends.fastest_variant import PAYS
from starflow.runtime.backends.onnxruntime.networks import OnnxRuntimeNetworks
from starflow.runtime.backends.onnxruntime.thread_choice import thread_counts
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Place, QuantizedStudent
from starflow.runtime.bundle.network_spec import NetworkSpec, StudentSpec
from starflow.runtime.diagnostics.take_turns import Lap, take_turns_for
from starflow.runtime.traces.autoregressive import RecordedTrace

STEPS = 4  # that are reported of each student
SECONDS, ROUNDS = 1.0, (15, 151)  # for a batch size, and rounds that this may take
Report = Callable[[str], None]


@dataclass(frozen=True)
class QuantisedStudents:
    """What students became: by place, those that the new variant runs there; and a summary of each."""

    at: Mapping[Place, tuple[QuantizedStudent, ...]]
    results: tuple[StudentResult, ...]


def quantise_students(
    bundle: Bundle, request: WeightRequest, trace: RecordedTrace, writer: VariantWriter, report: Report
) -> QuantisedStudents:
    """Quantise the students of a bundle, and write those that pay.

    Args:
        trace: Exact samples, with what each flow block was given.
        writer: Writes the files of the variant that runs them.
        report: Told what is done.
    """
    at: dict[Place, list[QuantizedStudent]] = {place.place: [] for place in bundle.places()}
    results = []
    for student in bundle.autoregressive.students:
        found = _Student(bundle, student, request, trace, report).quantised(writer)
        results.append(found.result)
        for place, made in found.at.items():
            at[place].append(made)
    return QuantisedStudents({place: tuple(made) for place, made in at.items()}, tuple(results))


def student_feeds(student: StudentSpec, trace: RecordedTrace) -> Iterator[Feed]:
    """The inputs of a student, batch by batch, where its flow block was sampled; guidance weights as near as it was trained for."""
    for inputs in trace.inputs[student.block]:
        count, weights = len(inputs.noise), inputs.scalars["guidance"]
        given = {
            "noise": inputs.noise,
            "guidance": np.clip(weights, *student.guidance),
            "condition": None if inputs.condition is None else inputs.condition[:count],
            "label": None if inputs.label is None else inputs.label[:count],
        }
        yield {spec.name: np.ascontiguousarray(given[spec.role], spec.dtype) for spec in student.network.inputs}


@dataclass(frozen=True)
class _Found:
    result: StudentResult
    at: Mapping[Place, QuantizedStudent]  # where it pays


class _Student:
    """Quantises one student."""

    def __init__(
        self, bundle: Bundle, student: StudentSpec, request: WeightRequest, trace: RecordedTrace, report: Report
    ) -> None:
        self._bundle, self._student, self._request = bundle, student, request
        self._name, self._report = f"student of flow block {student.block}", report
        self._weights = StepGraphWeights(bundle.path(student.network.file))
        self._feeds = list(student_feeds(student, trace))

    def quantised(self, writer: VariantWriter) -> _Found:
        self._report(f"{self._name}, timing products")
        ladders = self._ladders()
        self._report(f"{self._name}, looking at inputs")
        inputs = ProductInputs(self._weights, lambda: self._feeds, len(self._feeds), self._request.threads)
        candidates = BlockCandidates(self._weights, inputs, ladders, "cpu")
        self._report(f"{self._name}, measuring every matrix")
        exact = self._run(self._edited(candidates, {}))
        options = self._options(candidates, ladders, exact)

        def measure(choice: Choice) -> float:
            return sample_error(self._run(self._edited(candidates, treatments_of(choice))), exact).total

        tried = choose_within(options, self._request.budget, measure) if options else []
        if not tried:
            return _Found(StudentResult(self._student.block, {}, None, {}), {})
        choice, error = tried[-1]
        chosen = treatments_of(choice)
        self._report(f"{self._name}, timing a pass")
        networks = writer.write_student(self._student.block, lambda graph: self._edited(candidates, chosen, graph))
        at, times = {}, {}
        matrices = {name: option.name for name, option in choice.items()}
        for place, network in zip(self._bundle.places(), networks, strict=True):
            time = self._time(place, network)
            if place.place.shape is None:
                times[place.manifest.batch] = time
            if time < PAYS:
                at[place.place] = QuantizedStudent(
                    block=self._student.block, network=network, matrices=matrices, error=error, time=time
                )
        return _Found(StudentResult(self._student.block, matrices, error, times), at)

    def _ladders(self) -> Ladders:
        """The treatments that are faster than float32 for passes over all tokens of a batch."""
        request, bundle = self._request, self._bundle
        if request.product is not None:
            return fixed_ladders("cpu", "int8", request.product)
        shapes = Counter[Shape]((each.outputs, each.inputs) for each in self._weights.linears.values())
        tokens = bundle.autoregressive.blocks[self._student.block].token_shape(bundle.autoregressive.model)[0]
        rows = sorted({batch * tokens for batch in bundle.manifest.batch_sizes})
        return measure_ladders(shapes, rows, thread_counts(request.threads, self._student.network.weight_bytes)[-1])

    def _options(self, candidates: BlockCandidates, ladders: Ladders, exact: NDArray) -> dict[str, list[Option]]:
        """What each treatment of each matrix costs, and what it does to the tokens; those that are not faster are left out."""
        options: dict[str, list[Option]] = {}
        for name, kinds in candidates.calibrated.items():
            linear, source = self._weights.linears[name], float_bytes(self._weights, name)
            shape = (linear.outputs, linear.inputs)
            costs = {
                each.name: ladders.cost(each, shape, kinds[each.name].matrix.bytes, source)
                for each in ladders.of(*shape)
                if each.name in kinds
            }
            found = [
                Option(kind, cost, sample_error(self._run(self._edited(candidates, {name: kind})), exact).total)
                for kind, cost in costs.items()
                if cost < source
            ]
            if found:
                options[name] = [Option(KEPT, source, 0.0), *found]
        return options

    def _edited(
        self, candidates: BlockCandidates, chosen: Treatments, graph: StepGraphWeights | None = None
    ) -> EditedGraph:
        """The graph with some matrices in 8 bits; `graph` is the student's at another batch size."""
        taken = {name: candidates.calibrated[name][kind] for name, kind in chosen.items()}
        return edit_graph(graph or self._weights, "cpu", taken, candidates.scales)

    def _run(self, graph: EditedGraph) -> NDArray:
        """The tokens of all batches, [N, T, D]."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._request.threads
        options.log_severity_level = 4  # what it reports as an error it also raises
        with candidate_file(self._bundle, f"student{self._student.block}", graph) as path:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return np.concatenate([session.run(None, feed)[0] for feed in self._feeds])

    def _time(self, place: Bundle, network: NetworkSpec) -> float:
        """Time of a pass over that of the student in float32, at one batch size."""
        source = student_of(place.autoregressive, self._student.block).network
        feed = {name: value[: place.manifest.batch] for name, value in self._feeds[0].items()}
        sessions = OnnxRuntimeNetworks(self._bundle, threads=self._request.threads)
        try:
            timed = [_Timed(sessions, each, feed) for each in (source, network)]
            exact, quantised = take_turns_for(timed, SECONDS, ROUNDS)
        finally:
            sessions.close()
        return quantised.milliseconds / exact.milliseconds


@dataclass(frozen=True)
class _Timed:
    sessions: OnnxRuntimeNetworks
    network: NetworkSpec
    feed: Feed

    def __call__(self, lap: Lap) -> None:
        for _ in range(3):
            self.sessions.run(self.network, self.feed)
